"""Make batches for the objectives: next token (causal), masked tokens, and spans.

    causal    every token from those before it                            decoders
    masked    the tokens behind a few masks, from all others              encoders
    spans     the spans behind a few sentinels, one after the other       encoder-decoders

Shapes: B rows, L = length, T = context.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from thinwire.errors import ModelError
from thinwire.models.objective import EOS, IGNORED, MASK, PAD, Batch, Objective, Tokens, sentinel
from thinwire.text.words import near


@dataclass(frozen=True)
class causal(Objective):
    """Predict each token from those before it.

        inputs = w[:, :-1],  targets = w[:, 1:]

    Args:
        context: tokens that the model reads.

    Raises:
        ModelError: a context below 1.

    Example:
        >>> letters = causal(3, tokens=Tokens(vocab=5, special=(4,), eos=4))
        >>> batch = letters.batch(torch.tensor([[0, 1, 2, 3]]), torch.Generator())
        >>> batch.inputs["input_ids"].tolist(), batch.targets.tolist()
        ([[0, 1, 2]], [[1, 2, 3]])
    """

    @property
    def length(self) -> int:
        return self.context + 1

    @property
    def length_read(self) -> int:
        return self.context

    @property
    def specials(self) -> tuple[str, ...]:
        return (EOS,)

    def batch(self, windows: Tensor, generator: torch.Generator) -> Batch:
        self._checked(windows)
        return Batch({"input_ids": windows[:, :-1].contiguous()}, windows[:, 1:].contiguous())


@dataclass(frozen=True)
class masked(Objective):
    """Predict the tokens at some positions from all others: of these positions 80 % show a mask, 10
    % another token, 10 % their own.

    Which positions, is drawn for each row anew; special tokens, such as the end of a document, are
    never among them.

    Args:
        context: tokens that the model reads.
        fraction: of a row's positions; rounded to a whole number of them, at least 1, which is the
            same for every row.

    Raises:
        ModelError: a context below 1, or a fraction outside 0 to 1.

    Example:
        >>> masked(128).picks
        19

    Devlin et al. 2019, "BERT", arXiv:1810.04805.

    Differs from the paper: it draws each position by itself, and rows have more targets or fewer;
    here the count is fixed. The other token is text, never a special one.
    """

    fraction: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise ModelError(
                f"{self!r}: the fraction of masked positions is between 0 and 1; take 0.15"
            )

    @property
    def length(self) -> int:
        return self.context

    @property
    def specials(self) -> tuple[str, ...]:
        return (EOS, PAD, MASK)

    @property
    def picks(self) -> int:
        """The number of targets of a row."""
        return max(1, round(self.fraction * self.context))

    def batch(self, windows: Tensor, generator: torch.Generator) -> Batch:
        tokens = self._checked(windows)
        special = torch.isin(windows, torch.tensor(tokens.special))  # (B, T)
        # 1. Positions to predict: the lowest of random numbers; special tokens get the highest.
        order = torch.rand(windows.shape, generator=generator).masked_fill_(special, 2.0)
        picked = (
            torch.zeros_like(special).scatter_(
                1, order.topk(self.picks, largest=False).indices, True
            )
            & ~special
        )
        # 2. What is shown there: 80 % a mask, 10 % another token, 10 % the token itself.
        fate = torch.rand(windows.shape, generator=generator)
        shown = torch.where(
            fate < 0.8,
            tokens.mask,
            torch.where(fate < 0.9, _text(windows.shape, tokens, generator), windows),
        )
        return Batch(
            {"input_ids": torch.where(picked, shown, windows)},
            torch.where(picked, windows, IGNORED),
        )


@dataclass(frozen=True)
class spans(Objective):
    """Write the spans that were cut out of a row, each after the sentinel that replaces it.

        text      Thank you for inviting me to your party last week
        inputs    Thank you <0> me to your party <1> week </s>
        targets   <0> for inviting <1> last </s>

    With n = round(fraction L) tokens in s = round(n / mean_span) spans, a row has L - n + s + 1
    inputs and n + s + 1 targets, whatever is
    drawn: nothing is padded. L is the most that gives `context` inputs. The row starts with text
    and ends with a span; the lengths of the s spans are a uniform draw of all ways to part n
    tokens, as are those of the text between.

    Args:
        context: tokens that the encoder reads.
        fraction: of a row's tokens that are cut out.
        mean_span: the mean length of a span, in tokens.

    Raises:
        ModelError: a context below 3, a fraction outside 0 to 0.9, or a mean span below 1.

    Example:
        >>> objective = spans(512)
        >>> objective.length, objective.counts
        (568, (85, 28))

    Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text
    transformer", arXiv:1910.10683; `random_spans_noise_mask` of the t5 library.
    """

    fraction: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 3:
            raise ModelError(
                f"{self!r}: a token, a sentinel and the end are 3 tokens; take context=3 or more"
            )
        if not 0 < self.fraction <= 0.9:
            raise ModelError(
                f"{self!r}: the fraction that is cut out is between 0 and 0.9; take 0.15"
            )
        if not self.mean_span >= 1:
            raise ModelError(f"{self!r}: a span has at least 1 token; take mean_span=3")

    @functools.cached_property
    def length(self) -> int:  # found by counting up, once
        length = 2
        while self._inputs(length + 1) <= self.context:
            length += 1
        return length

    @property
    def specials(self) -> tuple[str, ...]:
        return (EOS, PAD, *map(sentinel, range(self.counts[1])))

    @property
    def counts(self) -> tuple[int, int]:
        """Return how many tokens of a row are cut out, and in how many spans."""
        return self._cut(self.length)

    def _cut(self, length: int) -> tuple[int, int]:
        noise = min(max(round(length * self.fraction), 1), length - 1)
        return noise, min(max(round(noise / self.mean_span), 1), noise, length - noise)

    def _inputs(self, length: int) -> int:
        noise, count = self._cut(length)
        return length - noise + count + 1

    def batch(self, windows: Tensor, generator: torch.Generator) -> Batch:
        tokens = self._checked(windows)
        (rows, length), (noise, count) = windows.shape, self.counts
        # 1. Lengths of texts and spans in turn, s of each in every row.
        parts = torch.stack(
            (
                _parted(rows, length - noise, count, generator),
                _parted(rows, noise, count, generator),
            ),
            -1,
        )  # (B, s, 2)
        ends = parts.flatten(1).cumsum(1)  # (B, 2 s): text, span, text, span, …
        # 2. The part of each position; odd parts are spans.
        part = torch.searchsorted(
            ends, torch.arange(length).expand(rows, length).contiguous(), right=True
        )  # (B, L)
        cut = part % 2 == 1
        first = F.pad(part[:, 1:] != part[:, :-1], (1, 0), value=True)  # of its part
        marks = torch.tensor(tokens.sentinels)[part // 2]
        end = windows.new_full((rows, 1), tokens.eos)
        # 3. Inputs have each text and one sentinel a span; targets have each span after its
        # sentinel. All rows are of one length, since the counts are.
        inputs = torch.cat(
            (torch.where(cut, marks, windows)[~cut | first].view(rows, -1), end), 1
        )  # (B, L - n + s + 1)
        targets = torch.cat(
            (torch.where(cut, windows, marks)[cut | first].view(rows, -1), end), 1
        )  # (B, n + s + 1)
        # 4. The decoder reads the targets one position later, from the padding on.
        shifted = F.pad(targets[:, :-1], (1, 0), value=tokens.pad)
        return Batch({"input_ids": inputs, "decoder_input_ids": shifted}, targets)


OBJECTIVES: dict[str, type[Objective]] = {"causal": causal, "masked": masked, "spans": spans}
MODELS = {
    "causal": "decoders (gpt2-…, llama-…)",
    "masked": "encoders (bert-…)",
    "spans": "encoder-decoders (t5-…)",
}


def objective_from(name: str, context: int, kind: str | None = None) -> Objective:
    """Return the objective of that name with its usual settings.

    Args:
        name: causal, masked or spans.
        context: tokens that the model reads.
        kind: what the model is for, where it is known; see `thinwire.models.build.kind_of`.

    Raises:
        ModelError: no objective has that name, the context is too short for it, or the model is for
            another.

    Example:
        >>> objective_from("masked", 128)
        masked(context=128, fraction=0.15)
        >>> objective_from("masked", 128, kind="causal")
        Traceback (most recent call last):
        ...
        thinwire.errors.ModelError: the objective masked is for encoders (bert-…), but this model
        is one of the decoders ...
    """
    if name not in OBJECTIVES:
        raise ModelError(
            f"no objective is called {name!r}{near(name, OBJECTIVES)} There are: "
            f"{', '.join(OBJECTIVES)}"
        )
    if kind is not None and kind != name:
        does = (
            f"this model is one of the {MODELS[kind]}; take the objective {kind}, or another model"
        )
        raise ModelError(f"the objective {name} is for {MODELS[name]}, but {does}")
    return OBJECTIVES[name](context)


def _text(shape: torch.Size, tokens: Tokens, generator: torch.Generator) -> Tensor:
    """Sample ids of text, all equally likely: the n-th id that is not special is n plus the number
    of special ids up to it."""
    special = torch.tensor(tokens.special)
    drawn = torch.randint(tokens.vocab - len(special), shape, generator=generator)
    return drawn + torch.searchsorted(special - torch.arange(len(special)), drawn, right=True)


def _parted(rows: int, total: int, parts: int, generator: torch.Generator) -> Tensor:
    """Return (rows, parts) int64 of at least 1 each; every row is a uniform sample of the ways to
    sum to `total`."""
    cuts = (
        torch.rand(rows, total - 1, generator=generator).argsort(1)[:, : parts - 1].sort(1).values
        + 1
    )
    return F.pad(F.pad(cuts, (1, 0)), (0, 1), value=total).diff(dim=1)
