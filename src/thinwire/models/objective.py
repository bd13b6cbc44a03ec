"""Decide what a model learns from a row of text: the tokens that it sees, and those that it must
predict.

    causal    every token from those before it                                       decoders
    masked    the tokens behind a few masks, from all others                         encoders
    spans     the spans behind a few sentinels, one after the other
              encoder-decoders

An objective says how many tokens it takes from the text (`length`) and which special tokens it
needs (`specials`); fitted to a tokenizer that has them, it makes batches. Every batch of a size has
the same number of targets, so that the mean of the ranks' losses is the loss of all their rows. All
draws come from the generator that is passed. Shapes: B rows, L = length, T = context.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from thinwire.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a target that does not count
EOS, PAD, MASK = "<|endoftext|>", "<pad>", "<mask>"


def sentinel(number: int) -> str:
    """Return the token that stands for a span.

    Example:
        >>> sentinel(0)
        '<extra_id_0>'
    """
    return f"<extra_id_{number}>"


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a model, and the targets of its logits (B, T, V): (B, T) int64, -100 where a
    position does not count."""

    inputs: dict[str, Tensor]
    targets: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; pinned tensors are copied asynchronously."""
        return Batch(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            self.targets.to(device, non_blocking=True),
        )

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, which a GPU can read by itself."""
        return Batch(
            {name: tensor.pin_memory() for name, tensor in self.inputs.items()},
            self.targets.pin_memory(),
        )


@dataclass(frozen=True)
class Tokens:
    """The ids of a tokenizer that objectives use: all are below `vocab`, and `special` lists those
    that are not text."""

    vocab: int
    special: tuple[int, ...]
    eos: int
    pad: int = -1
    mask: int = -1
    sentinels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Objective(ABC):
    """The settings of an objective; `tokens` is None until it is fitted to a tokenizer."""

    context: int
    tokens: Tokens | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ModelError(f"{self!r}: a row has at least 1 token; take context=1 or more")

    @property
    def name(self) -> str:
        """`causal`, `masked` or `spans`."""
        return type(self).__name__

    @property
    @abstractmethod
    def length(self) -> int:
        """Return how many tokens of text a row takes."""

    @property
    def length_read(self) -> int:
        """Return how many of these tokens the model has not read in another row."""
        return self.length

    @property
    @abstractmethod
    def specials(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer must have, by the names that Thinwire's own
        tokenizers use."""

    @abstractmethod
    def batch(self, windows: Tensor, generator: torch.Generator) -> Batch:
        """Turn rows of text into the inputs and targets of the model.

        Args:
            windows: (B, L) int64, on the generator's device.
            generator: where all chance comes from.

        Raises:
            ModelError: the objective is not fitted to a tokenizer, or the rows are not `length`
                long.
        """

    def fitted(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return the same objective with a tokenizer's ids.

        Raises:
            ModelError: the tokenizer lacks a special token.
        """
        # Roles have an attribute each; other special tokens, such as sentinels, are looked up by
        # name.
        roles = {
            EOS: tokenizer.eos_token_id,
            PAD: tokenizer.pad_token_id,
            MASK: tokenizer.mask_token_id,
        }
        ids_by_token = {
            special: roles[special] if special in roles else _id(tokenizer, special)
            for special in self.specials
        }
        ids = {special: id_ for special, id_ in ids_by_token.items() if isinstance(id_, int)}
        if lacking := [special for special in self.specials if special not in ids]:
            shown = ", ".join(lacking[:3]) + (
                f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            )
            raise ModelError(
                f"{self.name} needs special tokens that the tokenizer lacks: {shown}; add them, "
                "or take byte or bpe"
            )
        tokens = Tokens(
            vocab=len(tokenizer),
            special=tuple(sorted(id_ for id_ in tokenizer.all_special_ids if id_ < len(tokenizer))),
            eos=ids[EOS],
            pad=ids.get(PAD, -1),
            mask=ids.get(MASK, -1),
            sentinels=tuple(id_ for special, id_ in ids.items() if special not in roles),
        )
        return dataclasses.replace(self, tokens=tokens)

    def _checked(self, windows: Tensor) -> Tokens:
        if self.tokens is None:
            raise ModelError(
                f"{self!r} knows no ids yet; call fitted(tokenizer) and use what it returns"
            )
        if windows.dim() != 2 or windows.shape[1] != self.length:
            raise ModelError(
                f"{self!r} reads rows of {self.length} tokens, not a tensor of shape "
                f"{tuple(windows.shape)}"
            )
        return self.tokens


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the targets that count, in nats; it is computed in float32.

    Args:
        model: a Hugging Face model, or what is called like one.
        batch: of the model's own objective, on its device.
    """
    more: dict[str, Any] = (
        {"use_cache": False} if _caches(type(model).forward) else {}
    )  # what a cache keeps, training never reads
    logits: Tensor = model(**batch.inputs, **more).logits  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED
    )


@functools.cache
def _caches(forward: Callable[..., Any]) -> bool:
    return "use_cache" in inspect.signature(forward).parameters


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """Return a token's id, or None; tokenizers return the id of another token for an unknown
    one."""
    ids_by_token = tokenizer.convert_tokens_to_ids(token)
    return (
        ids_by_token
        if isinstance(ids_by_token, int) and tokenizer.convert_ids_to_tokens(ids_by_token) == token
        else None
    )
