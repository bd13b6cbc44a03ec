"""The GPU kernels beside copy bandwidth: bytes that a kernel must move over its time, as a share of
what `copy_` reaches on the same GPU.

    python -m benchmarks.kernels_gpu --json benchmarks/results/kernels_gpu.json

Bytes are those of the inputs and outputs, once each, so what a kernel reads twice counts against
it. In every round each kernel runs in turn with a copy, its share is taken within the round, and
the table has the median of all rounds. 64 Mi values are several times what a GPU's cache holds.
Times are by the GPU's own events, around calls that are as codecs make them. Before all of this
each kernel is run on fewer values, and must tell what the reference tells on the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import emit, parser, table
from thinwire.kernels import fast, gpu, native

BLOCK = 256
CHUNK, KEPT = 4096, 64  # of top-k
SUMMED = 4
KEY = (0x9E3779B9, 0x85EBCA6B)
WARMUP = 5
FEW = 1 << 20  # values of the comparison with the reference
TARGETS = {"nearest": 0.85, "stochastic": 0.50}  # of copy bandwidth


@dataclass(frozen=True)
class Case:
    """A kernel: `make(x)` prepares what it is called on, and tells the call and the bytes that it
    must move."""

    name: str
    make: Callable[[Tensor], tuple[Callable[[], Any], int]]
    least: float | None = None


def nbytes(*tensors: Tensor) -> int:
    return sum(each.numel() * each.itemsize for each in tensors)


def encode(
    bits: int, key: tuple[int, int] | None
) -> Callable[[Tensor], tuple[Callable[[], Any], int]]:
    def make(x: Tensor) -> tuple[Callable[[], Any], int]:
        def call() -> Tensor:
            return fast.grid_encode(x, BLOCK, bits, "tread", key)

        return call, nbytes(x, call())

    return make


def decode(bits: int) -> Callable[[Tensor], tuple[Callable[[], Any], int]]:
    def make(x: Tensor) -> tuple[Callable[[], Any], int]:
        payload = fast.grid_encode(x, BLOCK, bits, "tread", None)
        return lambda: fast.grid_decode(payload, x.numel(), BLOCK, bits, "tread", x.dtype), nbytes(
            payload, x
        )

    return make


def accumulate(bits: int) -> Callable[[Tensor], tuple[Callable[[], Any], int]]:
    def make(x: Tensor) -> tuple[Callable[[], Any], int]:
        payload, total = fast.grid_encode(x, BLOCK, bits, "tread", None), torch.zeros_like(x)

        def call() -> Tensor:
            fast.grid_accumulate(total, payload, BLOCK, bits, "tread")
            return total

        return call, nbytes(payload, total, total)

    return make


def left(bits: int) -> Callable[[Tensor], tuple[Callable[[], Any], int]]:
    def make(x: Tensor) -> tuple[Callable[[], Any], int]:
        before = x.flip(0)

        def call() -> tuple[Tensor, Tensor]:
            return fast.grid_encode_with_residual(x, before, 0.9, BLOCK, bits, "tread", None)

        return call, nbytes(x, before, *call())

    return make


def sum_encode(bits: int) -> Callable[[Tensor], tuple[Callable[[], Any], int]]:
    def make(x: Tensor) -> tuple[Callable[[], Any], int]:
        payloads = [fast.grid_encode(x.roll(i), BLOCK, bits, "tread", None) for i in range(SUMMED)]

        def call() -> Tensor:
            return fast.grid_sum_encode(payloads, x.numel(), BLOCK, bits, "tread", None, x.dtype)

        return call, nbytes(*payloads, call())

    return make


def sign(x: Tensor) -> tuple[Callable[[], Any], int]:
    return lambda: fast.sign_encode(x, BLOCK), nbytes(x, fast.sign_encode(x, BLOCK))


def sign_decode(x: Tensor) -> tuple[Callable[[], Any], int]:
    payload = fast.sign_encode(x, BLOCK)
    return lambda: fast.sign_decode(payload, x.numel(), BLOCK, x.dtype), nbytes(payload, x)


def sign_left(x: Tensor) -> tuple[Callable[[], Any], int]:
    before = x.flip(0)
    return lambda: fast.sign_encode_with_residual(x, before, 0.9, BLOCK), nbytes(
        x, before, *fast.sign_encode_with_residual(x, before, 0.9, BLOCK)
    )


def sign_sum(x: Tensor) -> tuple[Callable[[], Any], int]:
    payloads = [fast.sign_encode(x.roll(i), BLOCK) for i in range(SUMMED)]
    return lambda: fast.sign_sum_encode(payloads, x.numel(), BLOCK, x.dtype), nbytes(
        *payloads, payloads[0]
    )


def topk(x: Tensor) -> tuple[Callable[[], Any], int]:
    rows = x.view(-1, CHUNK)
    return lambda: fast.largest(rows, KEPT), nbytes(rows, *fast.largest(rows, KEPT))


CASES = (
    *(
        Case(f"int{bits} encode, nearest", encode(bits, None), TARGETS["nearest"])
        for bits in (8, 4)
    ),
    *(
        Case(f"int{bits} encode, stochastic", encode(bits, KEY), TARGETS["stochastic"])
        for bits in (8, 4)
    ),
    Case("3-bit encode, nearest", encode(3, None)),
    *(Case(f"int{bits} decode", decode(bits)) for bits in (8, 4)),
    *(Case(f"int{bits} decode, accumulate", accumulate(bits)) for bits in (8, 4)),
    *(Case(f"int{bits} feedback, encode, residual", left(bits)) for bits in (8, 4)),
    *(Case(f"int{bits} decode {SUMMED}, sum, encode", sum_encode(bits)) for bits in (8, 4)),
    Case("sign encode", sign),
    Case("sign decode", sign_decode),
    Case("sign feedback, encode, residual", sign_left),
    Case(f"sign decode {SUMMED}, sum, encode", sign_sum),
    Case(f"top {KEPT} of each {CHUNK}", topk),
)


def seconds(call: Callable[[], Any], times: int) -> float:
    """Of one call, of so many that follow one another on the GPU."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def agrees(case: Case, x: Tensor) -> bool:
    """Whether a kernel tells on the GPU what the reference tells on the CPU."""
    told = case.make(x.cuda())[0]()
    with native.using("torch"):
        expected = case.make(x)[0]()
    pairs = zip(
        *((each,) if isinstance(each, Tensor) else each for each in (told, expected)), strict=True
    )
    return all(
        torch.equal(a.cpu().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs
    )


def measure(case: Case, x: Tensor, rounds: int, times: int) -> dict[str, Any]:
    """A kernel's bytes a second over a copy's, round by round."""
    call, moved = case.make(x)
    other = torch.empty_like(x)

    def copy() -> None:
        other.copy_(x)

    for each in (call, copy):
        for _ in range(WARMUP):
            each()
    own, theirs = zip(
        *((seconds(call, times), seconds(copy, times)) for _ in range(rounds)), strict=True
    )
    shares = [(moved / a) / (nbytes(x, other) / b) for a, b in zip(own, theirs, strict=True)]
    return {
        "bytes": moved,
        "median_s": statistics.median(own),
        "bytes_per_s": moved / statistics.median(own),
        "copy_bytes_per_s": nbytes(x, other) / statistics.median(theirs),
        "share_of_copy": statistics.median(shares),
        "lowest_share": min(shares),
        "highest_share": max(shares),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--values",
        type=int,
        default=1 << 26,
        help=f"float32 values, a multiple of {CHUNK} (default 64 Mi)",
    )
    arguments.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="a kernel and a copy in turn, so many times (default 15)",
    )
    arguments.add_argument(
        "--times", type=int, default=10, help="calls that are timed together (default 10)"
    )
    args = arguments.parse_args()
    if args.values % CHUNK or args.values <= 0:
        raise SystemExit(
            f"--values {args.values}: top-k cuts them into chunks of {CHUNK}; give a multiple of "
            "that"
        )
    if not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that torch sees: this benchmark times CUDA or ROCm kernels; those of a CPU "
            "are in benchmarks.kernels"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if why := gpu.lacks(device):
        raise SystemExit(f"no GPU kernels to time: {why}")
    draw = torch.Generator().manual_seed(0)
    few = torch.randn(FEW, generator=draw)
    if wrong := [case.name for case in CASES if not agrees(case, few)]:
        raise SystemExit(
            f"other than the reference on {torch.cuda.get_device_name(device)}: "
            f"{', '.join(wrong)}; please report it"
        )
    x = torch.randn(args.values, generator=draw).to(device)
    rows, results = [], {}
    for case in CASES:
        found = measure(case, x, args.rounds, args.times)
        share = found["share_of_copy"]
        met = None if case.least is None else share >= case.least
        results[case.name] = {**found, "target": case.least, "target_met": met}
        verdict = "" if met is None else f">= {case.least:.2f}, {'met' if met else 'missed'}"
        told = (
            found["median_s"] * 1e3,
            found["bytes_per_s"] / 1e9,
            share,
            found["lowest_share"],
            found["highest_share"],
        )
        rows.append((case.name, *told, verdict))
    print(
        f"{torch.cuda.get_device_name(device)}: {args.values:,} values, a copy moves "
        f"{found['copy_bytes_per_s'] / 1e9:,.0f} GB/s"
    )
    table(("", "ms", "GB/s", "over copy", "lowest", "highest", "target"), rows)
    triton = str(import_module("triton").__version__)  # the distribution has other names for ROCm
    where = {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": triton,
    }
    emit(
        args.json,
        {
            "device": where,
            "values": args.values,
            "rounds": args.rounds,
            "times": args.times,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
