"""Code the indices of a sparse payload: k ascending ones below `per` in each of `chunks` chunks, in
the fewest bytes.

Three codings, with their bits for one chunk; l is the number of low bits, H = ((per - 1) >> l) + 1
    the number of high parts:
    packed  k ⌈log2 per⌉     each place as it is
    bitmap  per              one bit a value: sent or not
    fano    k l + k + H - 1  Elias–Fano: the l low bits packed, the high parts in unary (place i
            sets bit high + i)
The sizes follow from (k, per, chunks) alone, so every rank knows which coding is the smallest, and
    no flag travels.
(Elias 1974, "Efficient storage and retrieval by content and address of static files"; Fano 1971.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from thinwire.core import Coder, check_nbytes
from thinwire.errors import PayloadError
from thinwire.kernels import native, reference

Coding: TypeAlias = Literal["packed", "bitmap", "fano"]
CODINGS: tuple[Coding, ...] = (
    "packed",
    "bitmap",
    "fano",
)  # the earlier, the cheaper to read: it wins a tie
_WRONG = (
    "",
    "a chunk of other than {k} indices",
    "an index beyond its chunk of {per}",
    "indices that do not ascend within their chunk",
)


def nbytes(coding: Coding, k: int, per: int, chunks: int = 1) -> int:
    """Return the exact bytes of k indices below `per` in each chunk.

    Example:
        >>> [nbytes(coding, 64, 4096) for coding in CODINGS]
        [96, 512, 64]
    """
    if coding == "packed":
        return reference.packed_nbytes(chunks * k, _width(per))
    if coding == "bitmap":
        return reference.packed_nbytes(chunks * per, 1)
    low = _low(k, per)
    return reference.packed_nbytes(chunks * k, low) + reference.packed_nbytes(
        chunks * _unary(k, per, low), 1
    )


@lru_cache(maxsize=1024)
def smallest(k: int, per: int, chunks: int = 1) -> Coding:
    """Return the coding of the fewest bytes.

    Example:
        >>> smallest(1, 4096), smallest(64, 4096), smallest(2048, 4096)
        ('packed', 'fano', 'bitmap')
    """
    return min(CODINGS, key=lambda coding: nbytes(coding, k, per, chunks))


def smallest_nbytes(k: int, per: int, chunks: int = 1) -> int:
    """Return the exact bytes in the smallest coding; they never fall as k grows."""
    return nbytes(smallest(k, per, chunks), k, per, chunks)


def write(indices: Tensor, per: int, coding: Coding | None = None) -> Tensor:
    """Write indices (chunks, k) int64, ascending in each row, in the smallest coding unless one is
    given: (nbytes,) uint8."""
    chunks, k = indices.shape
    coding = coding or smallest(k, per, chunks)
    # Kernels and the reference below write the same bytes.
    kernels = native.anywhere(indices)
    if kernels is not None and indices.numel():
        return kernels.places_write(
            indices.contiguous(), per, *_plan(coding, k, per), nbytes(coding, k, per, chunks)
        )
    if coding == "packed":
        return reference.pack(indices.reshape(-1), _width(per))
    if coding == "bitmap":
        return reference.pack(_marks(indices, per), 1)
    # Elias–Fano: the i-th index of a chunk sets bit (high part + i), so equal high parts never
    # collide. The low bits lie before the unary part.
    low = _low(k, per)
    high = (indices >> low) + torch.arange(k, device=indices.device)
    unary = reference.pack(_marks(high, _unary(k, per, low)), 1)
    if not low:
        return unary
    return torch.cat([reference.pack((indices & ((1 << low) - 1)).reshape(-1), low), unary])


def read(
    side: Tensor, k: int, per: int, chunks: int, coder: Coder, coding: Coding | None = None
) -> Tensor:
    """Undo `write`: return (chunks, k) int64, ascending in each row and below `per`.

    Raises:
        PayloadError: the length is another, an index lies beyond its chunk, a row does not ascend,
            or it does not hold k indices.
    """
    coding = coding or smallest(k, per, chunks)
    check_nbytes(coder, side, nbytes(coding, k, per, chunks))
    # Kernels check while they read; `wrong` is the reason, 0 for none.
    kernels = native.anywhere(side)
    if kernels is not None and chunks * k:
        indices, wrong = kernels.places_read(
            side.contiguous(), chunks, k, per, *_plan(coding, k, per)
        )
        _refuse(wrong, k, per, coder)
        return indices
    if coding == "packed":
        indices = reference.unpack(side, chunks * k, _width(per)).to(torch.int64).view(chunks, k)
    elif coding == "bitmap":
        indices = _marked(side, k, per, chunks, coder)
    else:
        # Undo `high + i`, then put the low bits below.
        low = _low(k, per)
        cut = reference.packed_nbytes(chunks * k, low)
        indices = (
            _marked(side[cut:], k, _unary(k, per, low), chunks, coder)
            - torch.arange(k, device=side.device)
            << low
        )
        if low:
            indices |= reference.unpack(side[:cut], chunks * k, low).to(torch.int64).view(chunks, k)
    # A corrupted payload may hold any indices: refuse them before anything is written by them.
    if indices.numel():
        ascend = indices[:, 1:] > indices[:, :-1]
        _refuse(2 if int(indices.max()) >= per else 0 if bool(ascend.all()) else 3, k, per, coder)
    return indices


def add(side: Tensor, values: Tensor, total: Tensor, coder: Coder) -> None:
    """Add values (chunks, k) to total (chunks, per) at the indices that `side` holds in the
    smallest coding.

    Raises:
        PayloadError: as `read`; some values may have been added then.
    """
    (chunks, k), per = values.shape, total.shape[1]
    # A kernel reads and adds in one pass; it takes float32 that lies in a row.
    kernels = (
        native.library(values) if total.is_contiguous() and total.dtype == torch.float32 else None
    )
    if kernels is None:
        total.scatter_add_(1, read(side, k, per, chunks, coder), values)
        return
    coding = smallest(k, per, chunks)
    check_nbytes(coder, side, nbytes(coding, k, per, chunks))
    _refuse(
        kernels.places_add(side.contiguous(), values, total, *_plan(coding, k, per)), k, per, coder
    )


def _refuse(wrong: int, k: int, per: int, coder: Coder) -> None:
    if wrong:
        raise PayloadError(
            f"{coder!r}: {_WRONG[wrong].format(k=k, per=per)}; the payload is corrupted"
        )


def _plan(coding: Coding, k: int, per: int) -> tuple[int, int, int]:
    """Return the coding's number, the bits of a place that stand as they are, and the bits of the
    high parts of a chunk."""
    low = _width(per) if coding == "packed" else _low(k, per) if coding == "fano" else 0
    return CODINGS.index(coding), low, _unary(k, per, low)


def _width(per: int) -> int:
    """Return the bits of one index as it is."""
    return max(1, (per - 1).bit_length())


@lru_cache(maxsize=1024)
def _low(k: int, per: int) -> int:
    """Return the l of the fewest bits: k l + H falls while halving H saves more than the k bits
    that it costs."""
    return min(range(_width(per) + 1), key=lambda low: k * low + _unary(k, per, low))


def _unary(k: int, per: int, low: int) -> int:
    """Return the bits of the high parts in unary."""
    return k + ((per - 1) >> low) if k else 0


def _marks(indices: Tensor, per: int) -> Tensor:
    """Mark the indices (chunks, k) by one 0 or 1 a value, row after row: (chunks * per,) uint8."""
    chunks = indices.shape[0]
    return (
        torch.zeros(chunks, per, dtype=torch.uint8, device=indices.device)
        .scatter_(1, indices, 1)
        .view(-1)
    )


def _marked(side: Tensor, k: int, per: int, chunks: int, coder: Coder) -> Tensor:
    """Undo `_marks`; refuse rows without exactly k marks."""
    marks = reference.unpack(side, chunks * per, 1).view(chunks, per)
    if not bool((marks.sum(1, dtype=torch.int64) == k).all()):
        raise PayloadError(f"{coder!r}: {_WRONG[1].format(k=k)}; the payload is corrupted")
    return marks.nonzero()[:, 1].view(chunks, k)
