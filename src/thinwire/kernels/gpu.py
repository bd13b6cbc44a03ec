"""Launch the GPU kernels for the tensors that they take.

They are Triton's, so one source serves CUDA and ROCm.

Triton is imported at the first use. Where it is missing, or cannot compile for the GPU at hand, a
warning says so once, and torch runs the reference; THINWIRE_KERNELS=torch asks for that without the
warning.

Taken are float32 values in blocks of a power of two up to 4096 that end on whole bytes, or a single
block of at most so many values; and chunks of up to 8192 values for `largest`. All else goes to the
reference in torch, which changes nothing but the time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thinwire import env
from thinwire.kernels import native, reference
from thinwire.kernels.native import VARIABLE, KernelError
from thinwire.kernels.reference import Grid, Key

# Values of the largest block, and of the largest chunk, that one program takes.
BLOCK, CHUNK = 4096, 8192
_TILE = 1024  # values that a program takes at least
_MOST = 2**31  # values of one call: indices are 32 bits wide inside
_OLDEST = (7, 0)  # the compute capability that Triton compiles for
_interpreting: list[None] = []


@contextmanager
def interpreted() -> Iterator[None]:
    """Take tensors on a CPU inside the block, by Triton's interpreter: for tests. It must begin
    before anything else imports Triton."""
    before = env.text("TRITON_INTERPRET")
    # Triton looks where its functions, and ours, are defined, and again at its first launch
    env.put("TRITON_INTERPRET", "1")
    _interpreting.append(None)
    try:
        # A module that was imported before holds compiled functions, which refuse tensors on a CPU.
        theirs = import_module("triton.language")
        if not all(
            type(each).__name__ == "InterpretedFunction"
            for each in (theirs.sum, _programs().largest)
        ):
            raise KernelError(
                "Triton was imported before, as a compiler: enter gpu.interpreted() before "
                "anything else imports it"
            )
        yield
    finally:
        _interpreting.pop()
        if before:
            env.put("TRITON_INTERPRET", before)
        else:
            env.drop("TRITON_INTERPRET")


@cache
def _programs() -> Any:
    from thinwire.kernels import _programs

    return _programs


@cache
def lacks(device: torch.device) -> str | None:
    """Return why a GPU is not served by Triton; `None` where it is."""
    if find_spec("triton") is None:
        own = "triton" if torch.version.hip is None else "pytorch-triton-rocm"
        return (
            f"Triton is not installed; install it (pip install {own}, in the version that this "
            "torch asks for)"
        )
    # CUDA's devices alone have compute capabilities.
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST:
        name = torch.cuda.get_device_name(device)
        return (
            f"Triton does not compile for {name}, whose compute capability is below "
            f"{'.'.join(map(str, _OLDEST))}; take another GPU"
        )
    return None


@cache
def _warn_once(device: torch.device) -> None:
    warnings.warn(
        f"thinwire's codecs run in plain torch on {device}, many times slower than their kernels: "
        f"{lacks(device)}; "
        f"or set {VARIABLE}=torch to say that this is meant",
        RuntimeWarning,
        stacklevel=4,
    )


def serves(x: Tensor) -> bool:
    """Return whether Triton's programs run where a tensor lies."""
    if x.device.type == "cpu":
        return bool(_interpreting)
    if x.device.type != "cuda" or _plain_torch_is_meant():  # torch calls ROCm's devices "cuda", too
        return False
    if lacks(x.device) is None:
        return True
    _warn_once(x.device)
    return False


def _plain_torch_is_meant() -> bool:
    """Return whether plain torch was chosen by the variable, or by `native.using`.

    Where the CPU kernels were not built, torch is chosen as well, but not by the user.
    """
    return native.chosen() == "torch" and (
        len(native.available()) > 1 or env.text(VARIABLE) == "torch"
    )


def takes(n: int, block: int, bits: int) -> bool:
    """Return whether n values in such blocks are taken."""
    if not 0 < n < _MOST:
        return False
    # One block of any length is padded to a power of two; several lie side by side in the payload,
    # so each must fill its bytes.
    return (
        n <= BLOCK
        if n <= block
        else block <= BLOCK and block.bit_count() == 1 and block * bits % 8 == 0
    )


def grid_encode(
    x: Tensor, block: int, bits: int, grid: Grid, key: Key | None, steps: Tensor | None = None
) -> Tensor:
    """Encode x (n,) as `reference.grid_encode` does."""
    out = _Payload(x, x.numel(), block, bits)
    _grid_encode(x, out, bits, grid, key, steps)
    return out.payload


def grid_encode_with_residual(
    x: Tensor, residual: Tensor, decay: float, block: int, bits: int, grid: Grid, key: Key | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode x + decay · residual; return payload, new residual, and whether that is finite."""
    out, new_residual = _Payload(x, x.numel(), block, bits), torch.empty_like(residual)
    _grid_encode(
        x, out, bits, grid, key, feedback=(_stored(residual), decay, _stored(new_residual))
    )
    return out.payload, new_residual, out.finite(new_residual)


def grid_decode(payload: Tensor, block: int, bits: int, grid: Grid, out: Tensor, add: bool) -> None:
    """Decode a payload into `out`, or add it to `out`."""
    tile = _Tile(out.numel(), block)
    heads, codes = _parts(payload, out.numel(), block)
    top = reference.levels(bits, grid)[1]
    tile.launch(
        _programs().grid_decode, heads, codes, tile.n, out, tile.rows, tile.block, bits, top, add
    )


def grid_sum_encode(
    payloads: Sequence[Tensor], n: int, block: int, bits: int, grid: Grid, key: Key | None
) -> Tensor:
    """Encode the sum of what payloads decode to, added in order, in one program."""
    out, top = _Payload(payloads[0], n, block, bits), reference.levels(bits, grid)[1]
    # The program reads the payloads by a table of addresses: they lie in tensors of their own.
    payloads, table = _addresses(payloads)
    tile, program = out.tile, _programs().grid_sum_encode
    arguments = (
        *_words(key),
        out.heads,
        out.codes,
        tile.rows,
        tile.block,
        bits,
        top,
        round(top),
        key is not None,
    )
    tile.launch(program, table, len(payloads), n, out.heads.numel() * 4, *arguments)
    return out.payload


def sign_encode(x: Tensor, block: int) -> Tensor:
    out = _Payload(x, x.numel(), block, 1)
    _sign_encode(x, out, None)
    return out.payload


def sign_encode_with_residual(
    x: Tensor, residual: Tensor, decay: float, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    out, new_residual = _Payload(x, x.numel(), block, 1), torch.empty_like(residual)
    _sign_encode(x, out, (_stored(residual), decay, _stored(new_residual)))
    return out.payload, new_residual, out.finite(new_residual)


def sign_decode(payload: Tensor, block: int, out: Tensor, add: bool) -> None:
    """Decode a payload into `out`, or add it to `out`."""
    tile = _Tile(out.numel(), block)
    tile.launch(
        _programs().sign_decode,
        *_parts(payload, out.numel(), block),
        tile.n,
        out,
        tile.rows,
        tile.block,
        add,
    )


def sign_sum_encode(payloads: Sequence[Tensor], n: int, block: int) -> Tensor:
    out = _Payload(payloads[0], n, block, 1)
    payloads, table = _addresses(payloads)
    arguments = (out.heads, out.codes, out.tile.rows, out.tile.block, out.tile.halvings)
    out.tile.launch(
        _programs().sign_sum_encode, table, len(payloads), n, out.heads.numel() * 4, *arguments
    )
    return out.payload


def largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the indices and values of each row's k largest magnitudes, both (m, k)."""
    chunks, per = rows.shape
    indices, values = rows.new_empty(chunks, k, dtype=torch.int64), rows.new_empty(chunks, k)
    # A program takes `each` whole rows, padded to `width`: short rows share one.
    width = _width(per)
    each = max(1, _TILE // width)
    with _on(rows):
        program = _programs().largest[-(-chunks // each),]
        program(
            rows,
            chunks,
            per,
            k,
            indices,
            values,
            each,
            width,
            num_warps=_warps(each * width),
            # A fused multiply-add rounds once where the reference rounds twice.
            enable_fp_fusion=False,
        )
    return indices, values


class _Tile:
    """A layout of n values in blocks over programs: `rows` blocks of `block` values for each."""

    def __init__(self, n: int, block: int) -> None:
        self.n = n
        self.block = _width(min(n, block))
        self.rows = max(1, _TILE // self.block)
        self.size = self.rows * self.block
        self.programs = -(-n // self.size)
        self.halvings = self.block.bit_length() - 1

    def launch(self, program: Any, *args: Any) -> None:
        with _on(next(each for each in args if isinstance(each, Tensor))):
            program[self.programs,](*args, num_warps=_warps(self.size), enable_fp_fusion=False)


class _Payload:
    """A buffer for a payload: a head (float32) for each block, then codes (uint8).

    Codes are stored in whole tiles, so the buffer is longer than the payload.
    """

    def __init__(self, like: Tensor, n: int, block: int, bits: int) -> None:
        head = 4 * -(-n // block)
        self.tile = _Tile(n, block)
        room = torch.empty(
            head + self.tile.programs * self.tile.size // 8 * bits,
            dtype=torch.uint8,
            device=like.device,
        )
        self.payload = room[: head + (n * bits + 7) // 8]
        self.heads, self.codes = room[:head].view(torch.float32), room[head:]

    def finite(self, new_residual: Tensor) -> Tensor:
        """Return whether the new residual is finite. A head is not finite where a value of its
        block is not; bf16 may be infinite where float32 was not."""
        heads = self.heads.isfinite().all()
        return (
            heads if new_residual.dtype == torch.float32 else heads & new_residual.isfinite().all()
        )


def _stored(residual: Tensor) -> Tensor:
    """Return a residual as programs take it: bf16 as its bits."""
    return residual.view(torch.int16) if residual.dtype == torch.bfloat16 else residual


# The residual, its decay, and where to put the new residual.
_Feedback: TypeAlias = tuple[Tensor, float, Tensor]


def _grid_encode(
    x: Tensor,
    out: _Payload,
    bits: int,
    grid: Grid,
    key: Key | None,
    steps: Tensor | None = None,
    feedback: _Feedback | None = None,
) -> None:
    residual, decay, new_residual = feedback or (None, 1.0, None)
    tile, top = out.tile, reference.levels(bits, grid)[1]
    given = None if steps is None else steps.contiguous()
    # Flags are compiled in, so that a program without feedback or key does nothing for them.
    flags = (key is not None, steps is not None, new_residual is not None)
    arguments = (
        *_words(key),
        out.heads,
        out.codes,
        new_residual,
        tile.rows,
        tile.block,
        bits,
        top,
        round(top),
        *flags,
    )
    tile.launch(_programs().grid_encode, x, residual, float(decay), given, tile.n, *arguments)


def _sign_encode(x: Tensor, out: _Payload, feedback: _Feedback | None) -> None:
    residual, decay, new_residual = feedback or (None, 1.0, None)
    arguments = (
        out.heads,
        out.codes,
        new_residual,
        out.tile.rows,
        out.tile.block,
        out.tile.halvings,
        new_residual is not None,
    )
    out.tile.launch(_programs().sign_encode, x, residual, float(decay), out.tile.n, *arguments)


def _parts(payload: Tensor, n: int, block: int) -> tuple[Tensor, Tensor]:
    head = 4 * -(-n // block)
    return reference.from_bytes(payload[:head], torch.float32), payload[head:]


def _addresses(payloads: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return payloads whose heads lie on whole words, and their addresses: (count,) int64.

    The caller holds the payloads until the launch, as copies would be freed before it.
    """
    held = [
        each if each.data_ptr() % 4 == 0 else each.clone()
        for each in (payload.contiguous() for payload in payloads)
    ]
    return held, torch.tensor([each.data_ptr() for each in held], dtype=torch.int64).to(
        payloads[0].device, non_blocking=True
    )


def _words(key: Key | None) -> tuple[int, int]:
    """Return a key as signed words: whatever its value, the same compiled program takes it."""
    first, second = key or (0, 0)
    return (first ^ 2**31) - 2**31, (second ^ 2**31) - 2**31


def _width(n: int) -> int:
    """Return the next power of two."""
    return 1 << (n - 1).bit_length()


def _warps(size: int) -> int:
    return max(4, size // 512)


def _on(x: Tensor) -> Any:
    """Return a context in which a tensor's device is current, as Triton launches there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
