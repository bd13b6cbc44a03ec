"""Load and call the CPU kernels that were built with the package, the best that run here.

Three builds of the same source are in one package: for any processor ("baseline"), for AVX2 and for
AVX-512. The best that the processor runs is taken; THINWIRE_KERNELS=torch|baseline|avx2|avx512 asks
for another. ctypes lets go of the interpreter's lock while a kernel runs, and a kernel takes at
most torch.get_num_threads() threads.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from thinwire import env
from thinwire.errors import ThinwireError
from thinwire.kernels import memory, signatures
from thinwire.kernels.reference import Grid, Key

Level: TypeAlias = Literal["torch", "baseline", "avx2", "avx512"]
LEVELS: tuple[Level, ...] = ("torch", "baseline", "avx2", "avx512")
VARIABLE = "THINWIRE_KERNELS"
FOLDER = Path(__file__).parent / "cpu"

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What kernels read and write, as they number it."""
_FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
"""What a residual is kept in; bytes are those of `int8`."""
_MOST = 2**31  # values of one call: indices are 32 bits wide inside
_NO_KEY = (0, 0)
_forced: list[Level] = []


class KernelError(ThinwireError):
    """Kernels that were asked for are not here, or do not run on this processor."""


@cache
def _load(level: Level) -> ctypes.CDLL:
    library = ctypes.CDLL(str(FOLDER / f"_{level}.so"))
    if library.version() != signatures.VERSION:
        raise KernelError(
            f"{level}: a build of other sources than these (version {library.version()}, not "
            f"{signatures.VERSION}); install thinwire again"
        )
    signatures.declare(library)
    return library


@cache
def available() -> tuple[Level, ...]:
    """Return what can be chosen here, the slowest first."""
    if not (FOLDER / "_baseline.so").exists():
        return ("torch",)
    runs = int(_load("baseline").level())  # 0: the baseline only, 1: AVX2, 2: AVX-512
    return tuple(
        level
        for rank, level in enumerate(LEVELS, -1)
        if rank < 1 or (rank <= runs and (FOLDER / f"_{level}.so").exists())
    )


@cache
def _requested(name: str | None) -> Level:
    here = available()
    if name:
        if name not in LEVELS:
            raise KernelError(f"{VARIABLE}={name}: choose one of {', '.join(LEVELS)}")
        if name not in here:
            raise KernelError(
                f"{VARIABLE}={name}: not built, or not run by this processor; here are "
                f"{', '.join(here)}"
            )
        return name
    return here[-1]


def chosen() -> Level:
    """Return the level of the kernels in use."""
    return _forced[-1] if _forced else _requested(env.text(VARIABLE) or None)


@contextmanager
def using(level: Level) -> Iterator[None]:
    """Take these kernels inside the block, in this process: for tests and benchmarks."""
    if level not in available():
        raise KernelError(
            f"{level}: not built, or not run by this processor; here are {', '.join(available())}"
        )
    _forced.append(level)
    try:
        yield
    finally:
        _forced.pop()


@cache
def _warn_once() -> None:
    warnings.warn(
        "thinwire was installed without its CPU kernels (no C++ compiler was at hand), so codecs "
        "run in plain torch, many times slower. "
        f"Install a compiler and thinwire again; or set {VARIABLE}=torch to say that this is meant",
        RuntimeWarning,
        stacklevel=4,
    )


@dataclass(frozen=True, slots=True)
class Kernels:
    """A build's kernels, called with tensors; `gpu` has those of the same names for a GPU. lib:
    as ctypes sees them."""

    lib: ctypes.CDLL

    def grid_encode(
        self, x: Tensor, block: int, bits: int, grid: Grid, key: Key | None, steps: Tensor | None
    ) -> Tensor:
        out = _payload(x.numel(), block, bits)
        step = None if steps is None else steps.contiguous()
        settings = (x.numel(), block, bits, grid == "rise", key is not None, *(key or _NO_KEY))
        self.lib.grid_encode(
            x.data_ptr(),
            KINDS[x.dtype],
            None if step is None else step.data_ptr(),
            *settings,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def grid_encode_with_residual(
        self,
        x: Tensor,
        residual: Tensor,
        decay: float,
        block: int,
        bits: int,
        grid: Grid,
        key: Key | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, new_residual = _payload(x.numel(), block, bits), memory.empty_like(residual)
        settings = (block, bits, grid == "rise", key is not None, *(key or _NO_KEY))
        finite = self.lib.grid_encode_left(
            *_sum_of(x, residual, decay),
            *settings,
            out.data_ptr(),
            new_residual.data_ptr(),
            torch.get_num_threads(),
        )
        return out, new_residual, torch.tensor(bool(finite), device="cpu")

    def grid_decode(
        self, payload: Tensor, block: int, bits: int, grid: Grid, out: Tensor, add: bool
    ) -> None:
        settings = (out.numel(), block, bits, grid == "rise", add)
        to = (out.data_ptr(), KINDS[out.dtype], torch.get_num_threads())
        self.lib.grid_decode(payload.data_ptr(), *settings, *to)

    def grid_sum_encode(
        self, payloads: Sequence[Tensor], n: int, block: int, bits: int, grid: Grid, key: Key | None
    ) -> Tensor:
        out = _payload(n, block, bits)
        settings = (block, bits, grid == "rise", key is not None, *(key or _NO_KEY))
        self.lib.grid_sum_encode(
            _pointers(payloads),
            len(payloads),
            n,
            *settings,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def sign_encode(self, x: Tensor, block: int) -> Tensor:
        out = _payload(x.numel(), block, 1)
        self.lib.sign_encode(
            x.data_ptr(),
            KINDS[x.dtype],
            x.numel(),
            block,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def sign_encode_with_residual(
        self, x: Tensor, residual: Tensor, decay: float, block: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, new_residual = _payload(x.numel(), block, 1), memory.empty_like(residual)
        finite = self.lib.sign_encode_left(
            *_sum_of(x, residual, decay),
            block,
            out.data_ptr(),
            new_residual.data_ptr(),
            torch.get_num_threads(),
        )
        return out, new_residual, torch.tensor(bool(finite), device="cpu")

    def sign_decode(self, payload: Tensor, block: int, out: Tensor, add: bool) -> None:
        to = (out.data_ptr(), KINDS[out.dtype], torch.get_num_threads())
        self.lib.sign_decode(payload.data_ptr(), out.numel(), block, add, *to)

    def sign_sum_encode(self, payloads: Sequence[Tensor], n: int, block: int) -> Tensor:
        out = _payload(n, block, 1)
        self.lib.sign_sum_encode(
            _pointers(payloads), len(payloads), n, block, out.data_ptr(), torch.get_num_threads()
        )
        return out

    def largest(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        chunks, per = rows.shape
        indices = torch.empty(chunks, k, dtype=torch.int64)
        values = torch.empty(chunks, k, dtype=torch.float32)
        self.lib.topk_chunks(
            rows.data_ptr(),
            KINDS[rows.dtype],
            chunks,
            per,
            k,
            indices.data_ptr(),
            values.data_ptr(),
            torch.get_num_threads(),
        )
        return indices, values

    def largest_sum(
        self, x: Tensor, residual: Tensor, decay: float, y: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        chunks, per = x.shape
        indices = torch.empty(chunks, k, dtype=torch.int64)
        values = torch.empty(chunks, k, dtype=torch.float32)
        at = (indices.data_ptr(), values.data_ptr(), y.data_ptr())
        self.lib.topk_chunks_sum(
            x.data_ptr(),
            KINDS[x.dtype],
            residual.data_ptr(),
            decay,
            chunks,
            per,
            k,
            *at,
            torch.get_num_threads(),
        )
        return indices, values

    def above(self, x: Tensor, bar: int, most: int) -> tuple[Tensor, Tensor] | int:
        """Return indices and values; or their count, above `most`. bar: as an integer's bits."""
        # What is not written takes no memory.
        indices = torch.empty(most, dtype=torch.int64)
        values = torch.empty(most, dtype=torch.float32)
        count = self.lib.above(
            x.data_ptr(),
            x.numel(),
            bar,
            most,
            indices.data_ptr(),
            values.data_ptr(),
            torch.get_num_threads(),
        )
        return int(count) if count > most else (indices[:count].clone(), values[:count].clone())

    def places_write(
        self, indices: Tensor, per: int, coding: int, low: int, unary: int, nbytes: int
    ) -> Tensor:
        chunks, k = indices.shape
        out = torch.empty(nbytes, dtype=torch.uint8)
        at = (indices.data_ptr(), chunks, k, per)
        self.lib.places_write(*at, coding, low, unary, out.data_ptr())
        return out

    def places_read(
        self, side: Tensor, chunks: int, k: int, per: int, coding: int, low: int, unary: int
    ) -> tuple[Tensor, int]:
        """Return the indices, and what is wrong with them: 0 nothing, 1 a chunk without k indices,
        2 one beyond its chunk, 3 they do not ascend."""
        indices = torch.empty(chunks, k, dtype=torch.int64)
        return indices, int(
            self.lib.places_read(
                side.data_ptr(), chunks, k, per, coding, low, unary, indices.data_ptr()
            )
        )

    def places_add(
        self, side: Tensor, values: Tensor, total: Tensor, coding: int, low: int, unary: int
    ) -> int:
        """Add values (chunks, k) to total (chunks, per) at the indices that are read; return what
        is wrong with them, as in `places_read`."""
        (chunks, k), per = values.shape, total.shape[1]
        return int(
            self.lib.places_add(
                side.data_ptr(),
                chunks,
                k,
                per,
                coding,
                low,
                unary,
                values.data_ptr(),
                total.data_ptr(),
            )
        )

    def places_leave(self, indices: Tensor, values: Tensor, sent: Tensor, y: Tensor) -> bool:
        (chunks, k), per = indices.shape, y.shape[1]
        at = (indices.data_ptr(), values.data_ptr(), sent.data_ptr())
        return bool(
            self.lib.places_leave(*at, chunks, k, per, y.data_ptr(), torch.get_num_threads())
        )

    def thin_product(self, m: Tensor, thin: Tensor, transposed: bool) -> Tensor:
        (rows, n), r = m.shape, thin.shape[1]
        out = torch.empty(n if transposed else rows, r, dtype=torch.float32)
        self.lib.thin_product(
            m.data_ptr(),
            rows,
            n,
            thin.data_ptr(),
            r,
            transposed,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def outer(self, p: Tensor, q: Tensor, out: Tensor) -> None:
        (rows, n), r = out.shape, p.shape[1]
        self.lib.outer(
            p.data_ptr(), q.data_ptr(), rows, n, r, out.data_ptr(), torch.get_num_threads()
        )

    def scaled(self, x: Tensor, by: float, out: Tensor) -> bool:
        return bool(
            self.lib.scaled(
                x.data_ptr(),
                x.dtype == torch.bfloat16,
                x.numel(),
                by,
                out.data_ptr(),
                torch.get_num_threads(),
            )
        )


def library(x: Tensor, *narrow: torch.dtype) -> Kernels | None:
    """Return the kernels for a tensor: contiguous float32 on a CPU, fewer than 2^31 values; `None`
    where there are none.

    Args:
        narrow: other types that the kernel at hand reads.
    """
    fits = x.dtype in (torch.float32, *narrow)
    if not fits or not x.is_contiguous() or not 0 < x.numel() < _MOST:
        return None
    return anywhere(x)


def anywhere(x: Tensor) -> Kernels | None:
    """Return the kernels for a tensor of any dtype on a CPU, or `None`."""
    if x.device.type != "cpu":
        return None
    level = chosen()
    if level != "torch":
        return Kernels(_load(level))
    if available() == ("torch",) and not env.text(VARIABLE):
        _warn_once()
    return None


def _sum_of(x: Tensor, residual: Tensor, decay: float) -> tuple[int, int, int, int, float, int]:
    """Return the arguments of a kernel that encodes x + decay · residual."""
    form = _FORMS[residual.dtype]
    return x.data_ptr(), KINDS[x.dtype], residual.data_ptr(), form, decay, x.numel()


def _payload(n: int, block: int, bits: int) -> Tensor:
    return memory.empty(4 * -(-n // block) + (n * bits + 7) // 8, torch.uint8)


def _pointers(payloads: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(payloads))(*map(Tensor.data_ptr, payloads))
