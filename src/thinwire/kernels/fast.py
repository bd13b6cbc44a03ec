"""Call the fastest kernel for the tensor at hand: native, a GPU's, or the reference.

All are equal bit for bit.

Native kernels take contiguous float32 on a CPU, in blocks that end on whole bytes (or a single
block); what encodes reads bf16 and half, too, and widens them to float32, which is exact. `gpu`
says what a GPU's take. What they cannot take goes to torch; that changes nothing but
the time, and `thinwire doctor` says which kernels are in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from thinwire.kernels import gpu, int8, memory, native, reference
from thinwire.kernels.reference import Grid, Key


class _Blocked(Protocol):
    """Kernels for float32 values in blocks: the module `gpu`, or a build of `native`."""

    def grid_encode(
        self, x: Tensor, block: int, bits: int, grid: Grid, key: Key | None, steps: Tensor | None
    ) -> Tensor: ...

    def grid_encode_with_residual(
        self,
        x: Tensor,
        residual: Tensor,
        decay: float,
        block: int,
        bits: int,
        grid: Grid,
        key: Key | None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def grid_decode(
        self, payload: Tensor, block: int, bits: int, grid: Grid, out: Tensor, add: bool
    ) -> None: ...

    def grid_sum_encode(
        self, payloads: Sequence[Tensor], n: int, block: int, bits: int, grid: Grid, key: Key | None
    ) -> Tensor: ...

    def sign_encode(self, x: Tensor, block: int) -> Tensor: ...

    def sign_encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, block: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def sign_decode(self, payload: Tensor, block: int, out: Tensor, add: bool) -> None: ...

    def sign_sum_encode(self, payloads: Sequence[Tensor], n: int, block: int) -> Tensor: ...


def summed(x: Tensor, residual: Tensor, decay: float) -> Tensor:
    """Return x + decay · residual, as `reference.summed` does."""
    return _summed(x, residual, decay, memory.empty_like(x))


def all_finite(x: Tensor) -> Tensor:
    """Return whether all values are finite: a bool, in a tensor of no dimension; one pass, and no
    copy."""
    if not x.numel():
        return torch.ones((), dtype=torch.bool, device=x.device)
    # NaN spreads to both ends, and an infinity is one of them.
    low, high = x.aminmax()
    return low.isfinite() & high.isfinite()


def scaled(x: Tensor, by: float, out: Tensor) -> bool | None:
    """Write x · by to `out`, and return whether all of it is finite; `None` where no kernel looks
    on the way.

    x, out: tensors of one shape and dtype; `out` may be `x`.
    """
    fits = out.dtype == x.dtype and out.is_contiguous()
    kernels = native.library(x, torch.bfloat16) if fits else None
    if kernels is not None:
        return kernels.scaled(x, by, out)
    torch.mul(x, by, out=out)
    return None


def first_nonfinite(x: Tensor) -> Tensor:
    """Return the index of the first value of a flat tensor that is not finite, or -1.

    It is int64 of no dimension, on the tensor's device: nothing waits for a GPU.
    """
    # On a CPU the common case takes one pass, without a mask.
    if not x.is_cuda and bool(all_finite(x)):
        return torch.tensor(-1)
    bad = x.isfinite().logical_not_()
    return torch.where(bad.any(), bad.to(torch.uint8).argmax(), -1)


def grid_encode(
    x: Tensor, block: int, bits: int, grid: Grid, key: Key | None, steps: Tensor | None = None
) -> Tensor:
    """Encode values in blocks on a grid, as `reference.grid_encode` does in float32 or float64."""
    x, kernels = _readable(x, block, bits)
    if kernels is None:
        return reference.grid_encode(x, block, bits, grid, key, steps)
    return kernels.grid_encode(x, block, bits, grid, key, steps)


def grid_encode_with_residual(
    x: Tensor, residual: Tensor, decay: float, block: int, bits: int, grid: Grid, key: Key | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode y = x + decay · residual in one pass.

    Returns:
        The payload; the new residual, y less what the payload decodes to, in the dtype of
        `residual` (that of sums, bf16, or bytes of `int8`); whether all of the new residual is
        finite (bool).
    """
    (x, kernels), residual = _readable(x, block, bits), residual.contiguous()
    if _keeps(kernels, residual, x.numel(), block):
        return kernels.grid_encode_with_residual(x, residual, decay, block, bits, grid, key)
    if residual.dtype == torch.uint8:
        before = int8.unpack(residual, x.numel())
        payload, left, finite = grid_encode_with_residual(x, before, decay, block, bits, grid, key)
        return payload, int8.pack(left), finite
    # The same in three steps; rounding is step by step as in the kernels.
    y = reference.summed(x, residual.to(x.dtype), decay)
    payload = reference.grid_encode(y, block, bits, grid, key)
    new_residual = (y - reference.grid_decode(payload, y.numel(), block, bits, grid, y.dtype)).to(
        residual.dtype
    )
    return payload, new_residual, all_finite(new_residual)


def grid_decode(
    payload: Tensor,
    n: int,
    block: int,
    bits: int,
    grid: Grid,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """Decode a payload of `grid_encode`, into `out` where it is given, of any float type."""
    kernels = _blocked(payload, n, block, bits, dtype)
    if out is None and kernels is None:
        return reference.grid_decode(payload, n, block, bits, grid, dtype)
    out = memory.empty(n, dtype, payload.device) if out is None else out
    if not _writes(kernels, out, dtype):
        return out.copy_(grid_decode(payload, n, block, bits, grid, dtype))
    kernels.grid_decode(payload.contiguous(), block, bits, grid, out, False)
    return out


def grid_accumulate(total: Tensor, payload: Tensor, block: int, bits: int, grid: Grid) -> None:
    """Add what the payload decodes to: total += decode(payload), in one pass; a sum in bf16 or half
    is taken in float32 and rounded once."""
    n, dtype = total.numel(), _widened(total.dtype)
    kernels = _blocked(total, n, block, bits, dtype)
    if _writes(kernels, total, dtype):
        kernels.grid_decode(payload.contiguous(), block, bits, grid, total, True)
    else:
        total.add_(grid_decode(payload, n, block, bits, grid, dtype))


def grid_sum_encode(
    payloads: Sequence[Tensor],
    n: int,
    block: int,
    bits: int,
    grid: Grid,
    key: Key | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the payload of the sum of what payloads decode to, added in order, in one pass."""
    kernels = _blocked(payloads[0], n, block, bits, dtype)
    if kernels is not None:
        return kernels.grid_sum_encode(
            [each.contiguous() for each in payloads], n, block, bits, grid, key
        )
    total = reference.grid_decode(payloads[0], n, block, bits, grid, dtype)
    for payload in payloads[1:]:
        total.add_(reference.grid_decode(payload, n, block, bits, grid, dtype))
    return reference.grid_encode(total, block, bits, grid, key)


def sign_encode(x: Tensor, block: int) -> Tensor:
    """Encode signs and a mean magnitude for each block, as `reference.sign_encode` does in float32
    or float64."""
    x, kernels = _readable(x, block, 1)
    return reference.sign_encode(x, block) if kernels is None else kernels.sign_encode(x, block)


def sign_encode_with_residual(
    x: Tensor, residual: Tensor, decay: float, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode y = x + decay · residual; return what `grid_encode_with_residual` does."""
    (x, kernels), residual = _readable(x, block, 1), residual.contiguous()
    if _keeps(kernels, residual, x.numel(), block):
        return kernels.sign_encode_with_residual(x, residual, decay, block)
    if residual.dtype == torch.uint8:
        before = int8.unpack(residual, x.numel())
        payload, left, finite = sign_encode_with_residual(x, before, decay, block)
        return payload, int8.pack(left), finite
    y = reference.summed(x, residual.to(x.dtype), decay)
    payload = reference.sign_encode(y, block)
    new_residual = (y - reference.sign_decode(payload, y.numel(), block, y.dtype)).to(
        residual.dtype
    )
    return payload, new_residual, all_finite(new_residual)


def sign_decode(
    payload: Tensor, n: int, block: int, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Decode a payload of `sign_encode`, into `out` where it is given, of any float type."""
    kernels = _blocked(payload, n, block, 1, dtype)
    if out is None and kernels is None:
        return reference.sign_decode(payload, n, block, dtype)
    out = memory.empty(n, dtype, payload.device) if out is None else out
    if not _writes(kernels, out, dtype):
        return out.copy_(sign_decode(payload, n, block, dtype))
    kernels.sign_decode(payload.contiguous(), block, out, False)
    return out


def sign_accumulate(total: Tensor, payload: Tensor, block: int) -> None:
    """Add what the payload decodes to, as `grid_accumulate` does."""
    n, dtype = total.numel(), _widened(total.dtype)
    kernels = _blocked(total, n, block, 1, dtype)
    if _writes(kernels, total, dtype):
        kernels.sign_decode(payload.contiguous(), block, total, True)
    else:
        total.add_(sign_decode(payload, n, block, dtype))


def sign_sum_encode(payloads: Sequence[Tensor], n: int, block: int, dtype: torch.dtype) -> Tensor:
    """Return the payload of the sum of what payloads decode to, added in order, in one pass."""
    kernels = _blocked(payloads[0], n, block, 1, dtype)
    if kernels is not None:
        return kernels.sign_sum_encode([each.contiguous() for each in payloads], n, block)
    total = reference.sign_decode(payloads[0], n, block, dtype)
    for payload in payloads[1:]:
        total.add_(reference.sign_decode(payload, n, block, dtype))
    return reference.sign_encode(total, block)


def largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the indices of each row's k largest magnitudes, and the values there, widened: both
    (m, k)."""
    rows = rows.contiguous()
    if rows.dtype in _NARROW:
        kernels = native.library(rows, *_NARROW)
        if kernels is not None and k:
            return kernels.largest(rows, k)
        rows = rows.float()
    # A GPU's program takes a whole row at once, so rows are short; longer ones go to torch.
    if 0 < k <= rows.shape[1] <= gpu.CHUNK and rows.dtype == torch.float32 and gpu.serves(rows):
        return gpu.largest(rows, k)
    kernels = native.library(rows)
    if kernels is not None and k:
        return kernels.largest(rows, k)
    indices = reference.largest(rows, k)
    return indices, rows.gather(1, indices)


def largest_sum(
    x: Tensor, residual: Tensor, decay: float, y: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Write y = x + decay · residual (all (m, n)), and take each row's k largest, in one pass.

    Returns:
        Their indices and values, both (m, k).
    """
    x, residual = x.contiguous(), residual.contiguous()
    fits = residual.dtype == y.dtype == torch.float32 and y.is_contiguous()
    kernels = native.library(x, *_NARROW) if fits else None
    if kernels is not None and k:
        return kernels.largest_sum(x, residual, decay, y, k)
    x = x.float() if x.dtype in _NARROW else x
    return largest(_summed(x, residual, decay, y), k)


def leave(y: Tensor, indices: Tensor, values: Tensor, sent: Tensor) -> Tensor:
    """Write y (m, n) = values - sent, both (m, k), at their indices in each row.

    Returns:
        Whether all of those are finite: a bool of no dimension.
    """
    kernels = native.library(y)
    if (
        kernels is not None
        and sent.dtype == values.dtype == y.dtype
        and indices.is_contiguous()
        and values.is_contiguous()
    ):
        return torch.tensor(kernels.places_leave(indices, values, sent.contiguous(), y))
    rest = values - sent
    y.scatter_(1, indices, rest)
    return all_finite(rest)


def above(x: Tensor, bar: Tensor, most: int | None = None) -> tuple[Tensor, Tensor] | int:
    """Return the indices and values of magnitudes from `bar` on; or their count, above `most`."""
    x = x.contiguous()
    most = x.numel() if most is None else most
    kernels = native.library(x)
    if kernels is not None:
        # Magnitudes compare as their bits do, and NaN is above all. A zero is never taken: from 1
        # on; a bar of NaN takes all others.
        bits = 1 if bar.isnan() else max(int(bar.to(torch.float32).view(torch.int32)), 1)
        return kernels.above(x, bits, most)
    indices = reference.above(x, bar)
    return indices.numel() if indices.numel() > most else (indices, x[indices])


def thin_product(m: Tensor, thin: Tensor, transposed: bool = False) -> Tensor:
    """Multiply a matrix (rows, n), or its transpose, with a thin one of a few columns."""
    m, thin = m.contiguous(), thin.contiguous()
    kernels = native.library(m) if thin.dtype == m.dtype and thin.numel() else None
    if kernels is None:
        return (m.T if transposed else m) @ thin
    return kernels.thin_product(m, thin, transposed)


def outer(p: Tensor, q: Tensor, out: Tensor) -> None:
    """Write out = p qᵀ, as `reference.outer` does; on a GPU by its own product."""
    kernels = (
        native.library(out) if p.dtype == q.dtype == out.dtype and p.numel() and q.numel() else None
    )
    if kernels is not None:
        kernels.outer(p.contiguous(), q.contiguous(), out)
    elif out.is_cuda:
        torch.mm(p, q.T, out=out)
    else:
        reference.outer(p, q, out)


def _summed(x: Tensor, residual: Tensor, decay: float, out: Tensor) -> Tensor:
    return (
        torch.add(x, residual, out=out)
        if decay == 1
        else torch.mul(residual, decay, out=out).add_(x)
    )


_NARROW = (torch.bfloat16, torch.float16)


def _readable(x: Tensor, block: int, bits: int) -> tuple[Tensor, _Blocked | None]:
    """Return values as some kernel, or the reference, reads them, and the kernel; narrow ones as
    they are for a native kernel, else widened."""
    x = x.contiguous()
    if x.dtype in _NARROW:
        kernels = _blocked(x, x.numel(), block, bits, torch.float32)
        if kernels is not None and kernels is not gpu:
            return x, kernels
        x = x.float()
    return x, _blocked(x, x.numel(), block, bits, x.dtype)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype


def _writes(kernels: _Blocked | None, out: Tensor, dtype: torch.dtype) -> TypeGuard[_Blocked]:
    """Return whether the kernel writes to a tensor as it is; native ones to narrow types, too."""
    fits = out.dtype == dtype or (kernels is not gpu and out.dtype in _NARROW)
    return kernels is not None and fits and out.is_contiguous()


def _keeps(kernels: _Blocked | None, residual: Tensor, n: int, block: int) -> TypeGuard[_Blocked]:
    """Return whether the kernel takes a residual as it is kept; in 8 bits where blocks end
    together."""
    if residual.dtype == torch.uint8:
        whole = n <= block or block % int8.BLOCK == 0
        return kernels is not None and kernels is not gpu and whole
    return kernels is not None and residual.dtype in (torch.float32, torch.bfloat16)


def _blocked(where: Tensor, n: int, block: int, bits: int, dtype: torch.dtype) -> _Blocked | None:
    """Return the kernels that take n values in blocks on the device of a tensor, or `None`.

    Each block but a single one must end on a whole byte.
    """
    if dtype != torch.float32 or not 0 < n < 2**31 or not (n <= block or block * bits % 8 == 0):
        return None
    return gpu if gpu.takes(n, block, bits) and gpu.serves(where) else native.anywhere(where)
