"""Text as it streams by: read, clean, tokenize, pack, batch; for what is too large to be packed first, or changes all the time.

    read        documents, from wherever they come
    clean       `clean.cleaners`, which change or drop them
    tokenize    ids, each document followed by the end token
    pack        rows of one length, side by side, no padding between
    batch       each rank's rows of a step
    device      made ahead by `Prefetch`, copied by the caller

Row g of the run is the g-th of the stream. Nothing is shuffled but what the reader shuffles, and every rank reads all documents: a packed
set (`sets`) does better on both. What one may do here is stop at any step and go on from a place of three numbers, in any world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.data.clean import Cleaner, cleaned
from thinwire.data.order import Reader
from thinwire.data.tokenizer import encode
from thinwire.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Place:
    """Where a stream stands: before row `row`, which begins `offset` tokens into document `document`, counted through epochs' ends.

    Documents are counted after cleaning, from the first of the first epoch.
    """

    row: int = 0
    document: int = 0
    offset: int = 0


class Pipeline:
    """Rows of a stream of documents, each rank's own, step after step.

    Args:
        read: the documents, from the first one on; called again at the end of each epoch.
        tokenizer: any with an eos token.
        who: this rank, its batch and its world.
        length: tokens to a row.
        overlap: tokens that a row shares with the next one.
        clean: what is done to documents, made anew for each epoch (`unseen` remembers).
        place: where to go on from.

    Raises:
        ValueError: an overlap that is none.

    Example:
        >>> from thinwire.data import Text, tokenizer_from
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        >>> stream = Pipeline(lambda: [b"one", b"two"], tokenizer, Reader(batch=2), length=4)
        >>> [tokenizer.decode(row) for row in stream.at(0)]
        ['one<|endoftext|>', 'two<|endoftext|>']
        >>> stream.place
        Place(row=2, document=2, offset=0)
    """

    def __init__(
        self,
        read: Callable[[], Iterable[bytes]],
        tokenizer: PreTrainedTokenizerFast,
        who: Reader,
        *,
        length: int,
        overlap: int = 0,
        clean: Callable[[], Sequence[Cleaner]] = tuple,
        place: Place | None = None,
    ) -> None:
        if not 0 <= overlap < length:
            raise ValueError(f"Pipeline(length={length}, overlap={overlap}): a row shares 0 to {length - 1} tokens with the next")
        self._read, self._tokenizer, self._clean = read, tokenizer, clean
        self.who, self.length, self.overlap = who, length, overlap
        self._per_epoch: int | None = None  # documents, once they have been counted
        self._go(place or Place())

    def at(self, step: int) -> Tensor:
        """The batch of this rank at `step`: the next one, or any other that is read up to.

        Returns:
            (batch, length) int64.

        Raises:
            ValueError: a step below 0, or before the origin.
            DataError: a stream without documents, or a document that cannot be read.
        """
        first = self.who.first(step)
        if first < self.place.row:
            self._go(Place())
        for _ in range(first - self.place.row):
            self._row()
        begin = self.who.rank * self.who.batch
        rows = [self._row() for _ in range(self.who.world * self.who.batch)]
        return torch.from_numpy(np.stack(rows[begin : begin + self.who.batch]).astype(np.int64))

    def close(self) -> None:
        """Nothing to close."""

    def _go(self, place: Place) -> None:
        self.place = place
        """Before the next row."""
        self._documents = self._ids(place.document)
        self._ahead: list[NDArray[np.int32]] = []  # documents whose tokens are not all used, the first from `place.offset` on
        if place.offset:
            self._ahead.append(next(self._documents))

    def _row(self) -> NDArray[np.int32]:
        """The next row."""
        row, document, offset = self.place.row, self.place.document, self.place.offset
        pieces: list[NDArray[np.int32]] = []
        wanted, at, skip = self.length, 0, offset
        while wanted:
            if at == len(self._ahead):
                self._ahead.append(next(self._documents))
            piece = self._ahead[at][skip : skip + wanted]
            pieces.append(piece)
            wanted, at, skip = wanted - len(piece), at + 1, 0
        offset += self.length - self.overlap
        while self._ahead and offset >= len(self._ahead[0]):
            offset -= len(self._ahead.pop(0))
            document += 1
        self.place = Place(row + 1, document, offset)
        return np.concatenate(pieces)

    def _ids(self, skip: int) -> Iterator[NDArray[np.int32]]:
        """The ids of every document from number `skip` on, through epochs."""
        while True:
            if self._per_epoch and skip >= self._per_epoch:
                skip %= self._per_epoch
            counted = 0

            def counting() -> Iterator[bytes]:
                nonlocal counted
                for document in cleaned(self._read(), self._clean()):
                    counted += 1
                    yield document

            yield from encode(self._tokenizer, islice(counting(), skip, None))
            if not counted:
                raise DataError("the stream has no documents, or cleaning leaves none: give it some")
            self._per_epoch = counted
            skip = max(0, skip - counted)
