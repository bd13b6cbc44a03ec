"""Parts of a span as matrices: what `alternating`, `codebook`, `dct`, `lowrank` and the factored
ones have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.core import Extent, Packet, RankContext, Spec, State, encode_packet
from thinwire.what.scalar.identity import identity


def matrix(extent: Extent) -> tuple[int, int]:
    """Return rows and columns of a part seen as a matrix, its first dimension by all others; a
    vector is one row."""
    shape = extent.part.shape
    return (
        (shape[0], extent.part.numel // shape[0])
        if len(shape) > 1 and extent.part.numel
        else (1, extent.part.numel)
    )


def shrinks(extent: Extent, rank: int) -> bool:
    """Return whether two factors of so many columns are fewer values than the matrix."""
    rows, columns = matrix(extent)
    return extent.whole and rank * (rows + columns) < rows * columns


def run(x: Tensor, extent: Extent) -> Tensor:
    """Return the values of an extent, as a view."""
    return x[extent.at : extent.at + extent.high - extent.low]


def runs(spec: Spec) -> list[tuple[int, int, int]]:
    """Return (where, rows, columns) of everything in the span: whole parts as matrices, ranges and
    a span without parts as one row.

    Example:
        >>> import torch
        >>> from thinwire.core import Part
        >>> parts = (Part("w", (4, 3), 0, "matrix"), Part("b", (4,), 12, "vector"))
        >>> runs(Spec(parts, 0, 16, torch.float32)), runs(Spec((), 0, 9, torch.float32))
        ([(0, 4, 3), (12, 1, 4)], [(0, 1, 9)])
    """
    extents = list(spec.extents())
    if not extents and spec.numel:
        return [(0, 1, spec.numel)]
    return [
        (extent.at, *(matrix(extent) if extent.whole else (1, extent.high - extent.low)))
        for extent in extents
    ]


def bases(tensors: list[Tensor]) -> list[Tensor]:
    """Return an orthonormal basis of each matrix's columns, those of one shape in one batch.
    Householder QR stays orthonormal at any rank."""
    # One decomposition for each shape: many small ones, one after the other, are slow on a GPU.
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault(tuple(tensor.shape), []).append(i)
    by_index: dict[int, Tensor] = {}
    for indices in alike.values():
        by_index.update(
            zip(indices, torch.linalg.qr(torch.stack([tensors[i] for i in indices])).Q, strict=True)
        )
    return [by_index[i] for i in range(len(tensors))]


def warm(factor: Tensor, before: Tensor) -> Tensor:
    """Return a factor for the next step: at a largest entry of 1, so that tiny gradients do not
    underflow; the old one where it is of no use."""
    largest = factor.abs().amax()
    return torch.where(largest.isfinite() & (largest > 0), factor / largest, before)


def numbers(tensors: list[Tensor], spec: Spec, x: Tensor, ctx: RankContext) -> Packet:
    """Return a packet of several tensors of numbers that may be added."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else x.new_empty(0)
    return encode_packet(identity(), flat, Spec((), 0, flat.numel(), spec.work), State(), ctx)


def projection_bound(x: Tensor, extents: list[Extent], spec: Spec) -> Tensor:
    """Bound the error of a projection, which never makes a matrix longer: (spec.numel,) float64.

    Each value of one of `extents` may be off by the length of its whole matrix; others are exact.
    """
    error = torch.zeros(spec.numel, dtype=torch.float64)
    for extent in extents:
        values = run(x, extent).double()
        # divided by the largest, or squares of the smallest numbers would vanish
        largest = values.abs().max().clamp(min=1e-300)
        run(error, extent)[:] = (values / largest).norm() * largest * (1 + 1e-5)
    return error
