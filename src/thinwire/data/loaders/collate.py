"""Make batches of rows of any length: padded for an encoder, masked as for BERT, or cut in spans as
for T5.

Each collator takes the rows' ids and the rows' numbers in the run, and draws by (seed, number):
what is masked in a row does not depend on who reads it, or with which others. Rows of one length,
as packing makes them, are what `thinwire train`'s objectives are for; these take rows as documents
give them. Targets that do not count are -100, as torch's cross-entropy leaves out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.errors import DataError

IGNORED = -100
Row = NDArray[np.integer[Any]]


def padded(rows: Sequence[Row], fill: int, multiple: int = 1, most: int | None = None) -> Tensor:
    """Return rows as one tensor, padded at their ends: (rows, longest) int64.

    Args:
        rows: (tokens,) each.
        fill: what stands after a row's end.
        multiple: the length is rounded up to one of it, which suits GPUs.
        most: longer rows are cut there.

    Example:
        >>> padded([np.array([1, 2, 3]), np.array([4])], fill=0, multiple=4).tolist()
        [[1, 2, 3, 0], [4, 0, 0, 0]]
    """
    rows = [row[:most] for row in rows]
    longest = max(map(len, rows), default=0)
    out = np.full((len(rows), -(-longest // multiple) * multiple), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return torch.from_numpy(out)


@dataclass(frozen=True)
class encoder_batch:
    """Make batches for an encoder: `input_ids`, and `attention_mask`, which is 1 where there is
    text.

    Args:
        pad: the id of the padding.
        most: tokens to a row; longer ones are cut.
        multiple: see `padded`.

    Raises:
        DataError: a row without tokens.

    Example:
        >>> batch = encoder_batch(pad=0, most=3)([np.array([5, 6, 7, 8]), np.array([9])], [0, 1])
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[5, 6, 7], [9, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """

    pad: int
    most: int = 512
    multiple: int = 1

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> Mapping[str, Tensor]:
        cut_rows = _cut(rows, self.most)
        ones = [np.ones(len(row), dtype=np.int64) for row in cut_rows]
        return {
            "input_ids": padded(cut_rows, self.pad, self.multiple),
            "attention_mask": padded(ones, 0, self.multiple),
        }


@dataclass(frozen=True)
class masked_batch:
    """Make batches in which a fraction of the tokens are targets: 80 % of these show a mask, 10 %
    another token, 10 % their own; and `labels`.

    Of a row of n tokens that are not special, round(fraction n) are picked, and at least 1.

    Args:
        pad, mask: ids.
        vocab: how many ids there are; other tokens are drawn from those that are not special.
        special: ids that are never picked or drawn, `pad` and `mask` among them.
        fraction: of tokens.
        seed: of all random choices.
        most, multiple: as for `encoder_batch`.

    Raises:
        DataError: a fraction outside 0 to 1, an id outside the vocabulary, or a row without tokens.

    Example:
        >>> collate = masked_batch(pad=0, mask=1, vocab=100, special=(0, 1), fraction=0.5)
        >>> batch = collate([np.arange(50, 60), np.arange(70, 74)], [7, 8])
        >>> [int((row != IGNORED).sum()) for row in batch["labels"]]
        [5, 2]

    Devlin et al. 2019, "BERT", arXiv:1810.04805.

    Differs from the paper: the number of tokens picked in a row is fixed, not drawn.
    """

    pad: int
    mask: int
    vocab: int
    special: tuple[int, ...]
    fraction: float = 0.15
    seed: int = 0
    most: int = 512
    multiple: int = 1

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        special_ids = {*self.special, self.pad, self.mask}
        if min(special_ids) < 0 or max(special_ids) >= self.vocab or len(special_ids) >= self.vocab:
            raise DataError(
                f"{self!r}: special ids lie from 0 to vocab - 1, and some ids are not special"
            )

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> Mapping[str, Tensor]:
        # Draws are keyed by the row's number, so a row is masked alike in any world and batch.
        special = np.array(sorted({*self.special, self.pad, self.mask}))
        shown, labels = [], []
        for row, number in zip(_cut(rows, self.most), numbers, strict=True):
            generator = _generator(self.seed, number)
            # 1. Choose from text alone, a fraction of it and at least one.
            text = np.flatnonzero(~np.isin(row, special))
            picked = generator.permutation(text)[: max(1, round(self.fraction * len(text)))]
            out, label = row.astype(np.int64), np.full(len(row), IGNORED, dtype=np.int64)
            label[picked] = out[picked]
            # 2. Of those chosen 80 % show a mask, 10 % another token, 10 % themselves (BERT).
            kind = generator.random(len(picked))
            out[picked[kind < 0.8]] = self.mask
            others = picked[(kind >= 0.8) & (kind < 0.9)]
            out[others] = _not_special(
                generator.integers(self.vocab - len(special), size=len(others)), special
            )
            shown.append(out)
            labels.append(label)
        # 3. Pad: labels with what the loss leaves out, attention with 0.
        ones = [np.ones(len(row), dtype=np.int64) for row in shown]
        return {
            "input_ids": padded(shown, self.pad, self.multiple),
            "attention_mask": padded(ones, 0, self.multiple),
            "labels": padded(labels, IGNORED, self.multiple),
        }


@dataclass(frozen=True)
class span_batch:
    """Make batches with spans cut out, each replaced by a sentinel, and `labels` that list the
    spans.

        input     The <0> sat on the <1> .           labels     <0> cat <1> old mat <end>

    Of a row of n tokens, round(fraction n) are cut out, in round(that / mean_span) spans of random
    lengths at random places, none at the very beginning, and at least one where the row has two
    tokens.

    Args:
        pad, eos: ids.
        sentinels: ids, the first for the first span.
        fraction: of tokens to cut out.
        mean_span: tokens in a span, on average.
        seed: of all random choices.
        most, multiple: as for `encoder_batch`.

    Raises:
        DataError: a fraction outside 0 to 1, a span below 1, too few sentinels for the longest row,
            or a row without tokens.

    Example:
        >>> collate = span_batch(pad=0, eos=1, sentinels=(90, 91, 92), most=20)
        >>> batch = collate([np.arange(10, 30)], [0])
        >>> batch["input_ids"][0, -1].item(), batch["labels"][0, [0, -1]].tolist()
        (1, [90, 1])

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", arXiv:1910.10683.

    Differs from the paper: there every row ends with a span, so the one span of a short row is
    always its end; here text may follow it.
    """

    pad: int
    eos: int
    sentinels: tuple[int, ...]
    fraction: float = 0.15
    mean_span: float = 3.0
    seed: int = 0
    most: int = 512
    multiple: int = 1

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if self.mean_span < 1:
            raise DataError(f"{self!r}: a span has at least 1 token; take mean_span=3")
        if (needed := self._counts(self.most)[1]) > len(self.sentinels):
            raise DataError(
                f"{self!r}: a row of {self.most} tokens has {needed} spans, and there are "
                f"{len(self.sentinels)} sentinels; add some"
            )

    def _counts(self, length: int) -> tuple[int, int]:
        """Return how many tokens of a row are cut out, and in how many spans."""
        noise = min(max(round(self.fraction * length), 1), length - 1)
        return noise, max(1, min(round(noise / self.mean_span), noise, length - noise))

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> Mapping[str, Tensor]:
        shown, labels = [], []
        for row, number in zip(_cut(rows, self.most), numbers, strict=True):
            inputs, outputs = self._corrupted(row.astype(np.int64), _generator(self.seed, number))
            shown.append(inputs)
            labels.append(outputs)
        ones = [np.ones(len(row), dtype=np.int64) for row in shown]
        return {
            "input_ids": padded(shown, self.pad, self.multiple),
            "attention_mask": padded(ones, 0, self.multiple),
            "labels": padded(labels, IGNORED, self.multiple),
        }

    def _corrupted(
        self, row: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if len(row) < 2:
            return np.append(row, self.eos), np.array([self.eos])
        # Texts and spans take turns, at random lengths. What follows the last span may be empty:
        # lengths are drawn that sum to one more, and the last text, one too long, is not used but
        # is what remains of the row.
        noise, spans = self._counts(len(row))
        *texts, _ = _parted(len(row) - noise + 1, spans + 1, generator)
        inputs, outputs, at = [], [], 0
        for sentinel, text, cut in zip(
            self.sentinels, texts, _parted(noise, spans, generator), strict=False
        ):
            inputs += [row[at : at + text], [sentinel]]
            outputs += [[sentinel], row[at + text : at + text + cut]]
            at += text + cut
        return np.concatenate([*inputs, row[at:], [self.eos]]), np.concatenate(
            [*outputs, [self.eos]]
        )


def _cut(rows: Sequence[Row], most: int) -> list[Row]:
    if not rows or not min(map(len, rows)):
        raise DataError(
            "a batch has a row without tokens, or none: drop empty documents before they are "
            "collated"
        )
    return [row[:most] for row in rows]


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(
            f"fraction={fraction}: a fraction of the tokens is between 0 and 1; take 0.15"
        )


def _generator(seed: int, number: int) -> np.random.Generator:
    """Return the random generator of one row of a run."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _not_special(drawn: NDArray[np.int64], special: NDArray[Any]) -> NDArray[np.int64]:
    """Return the n-th id that is not special: n plus the number of special ids up to it."""
    return drawn + np.searchsorted(special - np.arange(len(special)), drawn, side="right")


def _parted(total: int, parts: int, generator: np.random.Generator) -> list[int]:
    """Sample `parts` integers of at least 1 that sum to `total`, all ways equally likely."""
    ends = np.sort(generator.permutation(total - 1)[: parts - 1]) + 1
    return list(map(int, np.diff(np.concatenate([[0], ends, [total]]))))
