"""Read, clean, tokenize, pack and batch text as a stream, for text that is too large to pack first
or always changes.

    read        documents, from wherever they come, in one lane or several
    clean       `clean.cleaners`, which change or drop them
    tokenize    ids, each document followed by the end token
    pack        rows of one length, side by side, no padding between
    batch       each rank's rows of a step
    device      made ahead by `Prefetch`, copied by the caller

With n lanes, row g of the run is row g div n of lane g mod n. The rows of a step are dealt to ranks
by their lanes, so a rank reads its own lanes and no others wherever world divides n and n divides
world * batch; elsewhere it reads some that are others', too, and the rows are as right. Each lane
goes round on its own. Nothing is shuffled but what the reader shuffles: a packed set (`sets`) does
better there. One may stop at any step and go on in any world.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.data.corpus.clean import Cleaner, cleaned
from thinwire.data.corpus.text import readers_of
from thinwire.data.corpus.tokenizer import encode
from thinwire.data.loaders.order import Reader
from thinwire.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Read = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Place:
    """The position of a lane: before its row `row`, which begins `offset` tokens into document
    `document`, counted over epochs.

    Documents are counted after cleaning, from the first of the first epoch.
    """

    row: int = 0
    document: int = 0
    offset: int = 0


def lanes_of(
    source: str, count: int, cache: Path | None = None, hosts: Collection[str] = ()
) -> tuple[Read, ...]:
    """Distribute the files of a text over lanes: file i is in lane i mod `count`, and the rank that
    reads the lane fetches it.

    Args:
        source: a file, folder or address, as `read_text` takes it.
        count: a multiple of the ranks of any world that will read, so that each file has one
            reader.
        cache: a folder that keeps what is fetched from an address, by default `cache_folder()`.
        hosts: names of hosts that an address may lead to, beside its own.

    Raises:
        DataError: there is no such text, it has no files, or fewer than lanes.
    """
    if source == "bundled" or source.startswith("hf:"):
        raise DataError(
            f"lanes_of({source!r}): lanes are made of whole files; of a dataset take "
            "rows.shard(n, k) for each, of 'bundled' one lane"
        )
    files = readers_of(source, cache, hosts)
    if not 1 <= count <= len(files):
        raise DataError(
            f"lanes_of({source!r}, {count}): a lane is made of whole files, and there are "
            f"{len(files)}; ask for 1 to {len(files)}"
        )

    def lane(number: int) -> Read:
        # Lane n reads files n, n + count, …; documents without text are dropped.
        return lambda: (
            document for read in files[number::count] for document in read() if document
        )

    return tuple(map(lane, range(count)))


def furthest(*places: Sequence[Place]) -> tuple[Place, ...]:
    """Combine the positions that all ranks report into how far each lane has been read, for another
    world to continue.

    Example:
        >>> furthest([Place(4, 2, 0), Place()], [Place(), Place(4, 7, 3)])
        (Place(row=4, document=2, offset=0), Place(row=4, document=7, offset=3))
    """
    return tuple(max(lane, key=lambda progress: progress.row) for lane in zip(*places, strict=True))


class Pipeline:
    """Rows of a stream of documents, step by step; each rank has its own.

    Args:
        read: the documents, from the first one on, called again at the end of each epoch; or
            several such lanes.
        tokenizer: any with an eos token.
        who: this rank, its batch and its world.
        length: tokens to a row.
        overlap: tokens that a row shares with the next one of its lane.
        clean: what is done to documents, made anew for each epoch of each lane (`unseen`
            remembers).
        places: of all lanes, to go on from: those of this rank, or the `furthest` of all; without
            them what was read is read again.

    Raises:
        ValueError: an overlap that is none, no lanes, or places of another number of lanes.

    Example:
        >>> from thinwire.data import Text, tokenizer_from
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        >>> stream = Pipeline(lambda: [b"one", b"two"], tokenizer, Reader(batch=2), length=4)
        >>> [tokenizer.decode(row) for row in stream.at(0)]
        ['one<|endoftext|>', 'two<|endoftext|>']
        >>> stream.places
        (Place(row=2, document=2, offset=0),)
    """

    def __init__(
        self,
        read: Read | Sequence[Read],
        tokenizer: PreTrainedTokenizerFast,
        who: Reader,
        *,
        length: int,
        overlap: int = 0,
        clean: Callable[[], Sequence[Cleaner]] = tuple,
        places: Sequence[Place] = (),
    ) -> None:
        if not 0 <= overlap < length:
            raise ValueError(
                f"Pipeline(length={length}, overlap={overlap}): a row shares 0 to {length - 1} "
                "tokens with the next"
            )
        each = (read,) if callable(read) else tuple(read)
        if not each or (places and len(places) != len(each)):
            raise ValueError(
                f"Pipeline: {len(each)} lanes and {len(places)} places; give at least one lane, "
                "and a place to each or none"
            )
        self.who = who
        self._lanes = [
            _Lane(one, tokenizer, length, overlap, clean, start)
            for one, start in zip(each, places or [Place()] * len(each), strict=True)
        ]

    @property
    def places(self) -> tuple[Place, ...]:
        """Return how far this rank has read each lane."""
        return tuple(lane.next_row for lane in self._lanes)

    def at(self, step: int) -> Tensor:
        """Return the batch of this rank at `step`: the next, or a later one, up to which rows are
        skipped.

        Returns:
            (batch, length) int64.

        Raises:
            ValueError: a step below 0, or before the origin.
            DataError: a lane without documents, or a document that cannot be read.
        """
        who, first, count = self.who, self.who.first(step), len(self._lanes)
        rows = sorted(
            (row % count, row // count) for row in range(first, first + who.world * who.batch)
        )
        mine = rows[who.rank * who.batch : (who.rank + 1) * who.batch]
        return torch.from_numpy(
            np.stack([self._lanes[lane].at(row) for lane, row in mine]).astype(np.int64)
        )

    def close(self) -> None:
        """Do nothing: no thread runs."""


class _Lane:
    """The rows of some documents, one after the other."""

    def __init__(
        self,
        read: Read,
        tokenizer: PreTrainedTokenizerFast,
        length: int,
        overlap: int,
        clean: Callable[[], Sequence[Cleaner]],
        start: Place,
    ) -> None:
        self._read, self._tokenizer, self._clean = read, tokenizer, clean
        self._length, self._overlap = length, overlap
        self._per_epoch: int | None = None  # documents, once they have been counted
        self._go(start)

    def at(self, row: int) -> NDArray[np.int32]:
        """Return a row; rows before it are skipped."""
        if row < self.next_row.row:
            self._go(Place())
        for _ in range(row - self.next_row.row):
            self._row()
        return self._row()

    def _go(self, start: Place) -> None:
        self.next_row = start
        """Where the next row begins."""
        self._documents = self._ids(start.document)
        self._ahead: list[
            NDArray[np.int32]
        ] = []  # documents whose tokens are not all used, the first from `next_row.offset` on

    def _row(self) -> NDArray[np.int32]:
        """Return the next row."""
        # 1. Collect documents, from the row's first token on, until the row is full.
        row, document, offset = self.next_row.row, self.next_row.document, self.next_row.offset
        windows: list[NDArray[np.int32]] = []
        wanted, at, skip = self._length, 0, offset
        while wanted:
            if at == len(self._ahead):
                self._ahead.append(next(self._documents))
            piece = self._ahead[at][skip : skip + wanted]
            windows.append(piece)
            wanted, at, skip = wanted - len(piece), at + 1, 0
        # 2. Move on by a row less its overlap, and drop documents that lie behind.
        offset += self._length - self._overlap
        while self._ahead and offset >= len(self._ahead[0]):
            offset -= len(self._ahead.pop(0))
            document += 1
        self.next_row = Place(row + 1, document, offset)
        return np.concatenate(windows)

    def _ids(self, skip: int) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of every document from number `skip` on, over all epochs."""
        while True:
            # The documents of an epoch are known once one was read: whole epochs are skipped
            # unread.
            if self._per_epoch and skip >= self._per_epoch:
                skip %= self._per_epoch
            counted = 0

            def counting() -> Iterator[bytes]:
                nonlocal counted
                for document in cleaned(self._read(), self._clean()):
                    counted += 1
                    yield document

            # Skipped documents are read and cleaned, since `clean` may remember them, but not
            # tokenised.
            yield from encode(self._tokenizer, islice(counting(), skip, None))
            if not counted:
                raise DataError(
                    "the stream has no documents, or cleaning leaves none: give it some"
                )
            self._per_epoch = counted
            skip = max(0, skip - counted)
