"""Measure codecs on a tensor: bytes, error and speed, beside a memory copy in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from thinwire.core import Codec, Part, RankContext, Spec
from thinwire.errors import DataError, PayloadError
from thinwire.text.words import error_text

USUAL = (
    "cast('bf16')",
    "uniform(8)",
    "uniform(4)",
    "uniform(4, rounding='stochastic')",
    "uniform(2)",
    "topk(0.1)",
    "topk(0.01)",
    "topk(64, per=4096) >> uniform(2, grid='rise')",
    "threshold(2.0)",
    "randomk(0.1)",
    "lowrank(4)",
)
LEAST_S, LEAST_TURNS = 0.2, 3  # a figure is the quickest of at least so many turns and seconds
SEED = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """One codec on one tensor. error: ||Q(x) - x|| / ||x||; rates: bytes of x a second, and over
    memcpy's.

    decode rates are `None` for a codec that talks in several rounds: its maths lie between them,
    and all are in encode.
    """

    codec: str
    nbytes: int
    bits: float
    error: float
    cosine: float
    encode_gb_s: float
    decode_gb_s: float | None
    encode_ratio: float
    decode_ratio: float | None


@dataclass(frozen=True, slots=True)
class Speed:
    """How long a codec takes for a value, in ns, and the rate of a link up to which that pays.

    On a faster link, in Gb/s, encoding and decoding take longer than what they save of sending
    float32; `None` for a codec that saves nothing.
    """

    encode_ns: float
    decode_ns: float | None
    pays_below_gbits: float | None


class Priced(Protocol):
    """What has a place in a plane of bits and error."""

    @property
    def codec(self) -> str: ...

    @property
    def bits(self) -> float: ...

    @property
    def error(self) -> float: ...


P = TypeVar("P", bound=Priced)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Hold what a tensor becomes when encoded and decoded.

    nbytes: bytes of the payloads; error: ||Q(x) - x|| / ||x||; cosine: of Q(x) and x.
    """

    nbytes: int
    error: float
    cosine: float


def measured(
    codec: Codec,
    tensors: Mapping[str, Tensor],
    copy_gb_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Figures:
    """Measure a codec on tensors that lie side by side as in a bucket, in seconds of a clock.

    Raises:
        PayloadError: its own payload does not decode.
    """
    # Size, error and speed of the same tensors; speeds also beside a memory copy of this run.
    x, spec = laid(tensors)
    ctx = RankContext(rank=0, group=(0,), step=0, seed=SEED)
    outcome = round_trip(codec, x, spec, ctx)
    encode_s, decode_s = _seconds(codec, x, spec, ctx, clock=clock)
    encode, decode = (
        x.nbytes / encode_s / 1e9,
        None if decode_s is None else x.nbytes / decode_s / 1e9,
    )
    ratio = None if decode is None else decode / copy_gb_s
    bits = 8 * outcome.nbytes / x.numel()
    return Figures(
        repr(codec),
        outcome.nbytes,
        bits,
        outcome.error,
        outcome.cosine,
        encode,
        decode,
        encode / copy_gb_s,
        ratio,
    )


@lru_cache(maxsize=64)
def speed(codec: Codec, numel: int = 1 << 20) -> Speed:
    """Measure how fast a codec is on a small matrix of normal values, in a few hundredths of a
    second."""
    x, spec = laid(gaussian(numel))
    ctx = RankContext(rank=0, group=(0,), step=0, seed=SEED)
    nbytes, _ = payload_and_sum(codec, x, spec, ctx)
    encode_s, decode_s = _seconds(codec, x, spec, ctx, LEAST_S / 10)
    saved = 32 - 8 * nbytes / x.numel()
    encode_ns = 1e9 * encode_s / x.numel()
    decode_ns = None if decode_s is None else 1e9 * decode_s / x.numel()
    pays = saved / (encode_ns + (decode_ns or 0.0)) if saved > 0 else None
    return Speed(encode_ns, decode_ns, pays)


def round_trip(codec: Codec, x: Tensor, spec: Spec, ctx: RankContext) -> RoundTrip:
    """Encode and decode `x` on one rank alone; return bytes, error and cosine.

    Raises:
        PayloadError: its own payload does not decode.
    """
    nbytes, value = payload_and_sum(codec, x, spec, ctx)
    value, exact = value.double(), x.double()
    cosine = torch.dot(value, exact) / (value.norm() * exact.norm()).clamp_min(1e-300)
    return RoundTrip(nbytes, float((value - exact).norm() / exact.norm()), float(cosine))


def payload_and_sum(codec: Codec, x: Tensor, spec: Spec, ctx: RankContext) -> tuple[int, Tensor]:
    """Return the bytes that one rank alone sends, and the sum over ranks that it decodes."""
    flow = codec.rounds(x, spec, codec.init(spec, ctx), ctx)
    nbytes, answer = 0, None
    try:
        packet = next(flow)
        while True:
            nbytes += packet.payload.numel()
            answer = packet.open(packet.payload.clone(), ctx.rank)
            packet = flow.send(answer)
    except StopIteration as end:
        return nbytes, end.value.total
    raise PayloadError(f"{codec!r} sent nothing")


def laid(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Spec]:
    """Return the tensors side by side in one flat float32 tensor, and where each lies."""
    parts, at = [], 0
    for name, tensor in tensors.items():
        role = "vector" if tensor.dim() < 2 else "embedding" if "embed" in name else "matrix"
        parts.append(Part(name, tuple(tensor.shape), at, role))  # type: ignore[arg-type]  # one of the three roles
        at += tensor.numel()
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors.values()]), Spec(
        tuple(parts), 0, at, torch.float32
    )


def copy_gb_s(nbytes: int = 64 << 20) -> float:
    """Measure how fast this machine copies memory, in GB read a second, with torch's threads."""
    source, target = torch.ones(nbytes // 4), torch.empty(nbytes // 4)
    return nbytes / _quickest(lambda: target.copy_(source)) / 1e9


def read(path: Path) -> dict[str, Tensor]:
    """Read a saved gradient's tensors: of a .safetensors file, or what torch.save wrote.

    Raises:
        DataError: it cannot be read, or holds none of floating point, or nothing but zeros.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has kinds of its own
        raise DataError(f"{path}: no gradient can be read from it: {error_text(error)}") from error
    # A single tensor counts as a table of one; what is no floating point is no gradient.
    table = {"tensor": content} if isinstance(content, Tensor) else content
    if not isinstance(table, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = {
        str(name): each
        for name, each in table.items()
        if isinstance(each, Tensor) and each.is_floating_point() and each.numel()
    }
    if not tensors:
        raise DataError(f"{path} holds no tensor of floating point")
    if bad := [name for name, each in tensors.items() if not each.isfinite().all()]:
        raise DataError(
            f"{path}: {bad[0]!r} holds values that are not finite; errors would mean nothing"
        )
    if not any(bool(each.any()) for each in tensors.values()):
        raise DataError(f"{path} holds nothing but zeros; a relative error has no meaning")
    return tensors


def gaussian(numel: int, heavy: bool = False) -> dict[str, Tensor]:
    """Draw a square matrix of independent values.

    They are normal or, with `heavy`, Student's t with 3 degrees of freedom, as heavy-tailed as
    gradients.
    """
    side = max(1, int(numel**0.5))
    draw = torch.Generator().manual_seed(SEED)
    normal = torch.randn(side, side, generator=draw)
    if heavy:
        normal /= (torch.randn(3, side, side, generator=draw).square().mean(0)).sqrt()
    return {"matrix": normal}


def _seconds(
    codec: Codec,
    x: Tensor,
    spec: Spec,
    ctx: RankContext,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float | None]:
    opens_one = codec.single_packet_coder
    if opens_one is None:
        return _quickest(lambda: payload_and_sum(codec, x, spec, ctx), None, least_s, clock), None
    state = codec.init(spec, ctx)
    encode_s = _quickest(lambda: next(codec.rounds(x, spec, state, ctx)), None, least_s, clock)
    packet = next(codec.rounds(x, spec, state, ctx))
    # What is opened is handed over, so each turn gets its own.
    opened: Callable[[Tensor], object] = lambda payload: packet.open(payload, ctx.rank)  # noqa: E731
    return encode_s, _quickest(opened, packet.payload.clone, least_s, clock)


def _quickest(
    work: Callable[..., object],
    prepare: Callable[[], object] | None = None,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of the quickest turn; what `prepare` makes for each turn is not timed."""
    seconds: list[float] = []
    begun = clock()
    while len(seconds) < LEAST_TURNS or clock() - begun < least_s:
        given = [] if prepare is None else [prepare()]
        before = clock()
        work(*given)
        seconds.append(clock() - before)
    return min(seconds)


def frontier(rows: Sequence[P]) -> list[P]:
    """Return the rows that no other beats in both bits and error, sorted by bits."""
    best: list[P] = []
    for row in sorted(rows, key=lambda each: (each.bits, each.error)):
        if not best or row.error < best[-1].error:
            best.append(row)
    return best
