"""How fast the CPU kernels are: input rate over memcpy's, one thread, 2^24 values; and beside
other libraries' quantisers.

    python -m benchmarks.kernels --json benchmarks/results/kernels.json
    python -m benchmarks.kernels --levels avx512 --no-rivals

Each call is followed by a copy of 64 MiB, and the ratio is taken pair by pair, a byte of the values
a call reads or writes to a byte copied: the median of so many pairs, and their quartiles. Time is
the process's processor time, of all its threads, so that others on the machine cost less of it.
Buffers that a kernel writes are there before, as memcpy's is; what a codec allocates itself (the
last rows) counts. Rivals run in environments of their own, each beside its own copies; a rate is
that of the values' float32 bytes.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes import c_void_p
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import emit, parser, table
from benchmarks.rival_codecs import REQUIRES
from thinwire.bench.environments import python_for
from thinwire.core import Coder, Part, RankContext, Spec
from thinwire.data.cache import cache_folder
from thinwire.errors import BenchError
from thinwire.kernels import fast, int8, native, reference
from thinwire.what import feedback, sampled, sign, topk, uniform

N, BLOCK = 1 << 24, 256
ROOT = Path(__file__).parents[1]
# Of the issue that asked for the kernels: at least (with AVX-512, with AVX2), and what was aimed
# at.
WANTED: dict[str, tuple[float, float, float]] = {
    "int8 encode": (1.35, 0.9, 1.6),
    "int4 encode": (1.45, 1.2, 1.8),
    "int8 encode, stochastic": (1.1, 0.85, 1.4),
    "int8 decode": (1.2, 1.0, 1.6),
    "int8 decode-accumulate": (1.4, 1.2, 1.7),
    "int8 feedback + encode + residual": (0.95, 0.7, 1.1),
    "int8 feedback + encode + residual in bf16": (0.95, 0.7, 1.1),
    "int8 decode-4-sum-encode, over decode-accumulate": (0.8, 0.8, 1.0),
    "sign encode": (1.8, 1.0, 2.2),
    "sampled threshold, 1 %": (0.8, 0.8, 1.2),
    "top-k 64 of 4096, Elias-Fano, 2-bit values": (0.3, 0.3, 0.6),
    "exact top-k, 1 %": (0.25, 0.25, 0.5),
    # In bf16: at least 0.45 of what float32 is asked for, as a value has half the bytes.
    "int8 decode, bf16": (0.72, 0.72, 0.9),
    "int8 decode-accumulate, bf16": (0.76, 0.76, 1.0),
    "int4 feedback + encode + residual": (0.64, 0.64, 0.75),
    "int4 feedback + encode + residual in bf16": (0.72, 0.72, 1.1),
    "int4 feedback + encode + residual in int8": (0.72, 0.72, 0.9),
    "int8 encode, bf16": (0.72, 0.72, 0.9),
    "int4 encode, bf16": (0.81, 0.81, 1.0),
    "int8 encode, stochastic, bf16": (0.63, 0.63, 0.75),
    "sign encode, bf16": (0.95, 0.95, 1.3),
    "top-k 64 of 4096, Elias-Fano, 2-bit values, bf16": (0.27, 0.27, 0.35),
}
TYPES = ((torch.float32, 0, ""), (torch.bfloat16, 1, ", bf16"), (torch.float16, 2, ", half"))


@dataclass(frozen=True)
class Rate:
    """A kernel's rate over memcpy's."""

    name: str
    level: str
    ratio: float
    low: float
    high: float
    gb_s: float


def main() -> None:
    made = parser(__doc__)
    made.add_argument(
        "--levels", nargs="*", default=[level for level in native.available() if level != "torch"]
    )
    made.add_argument("--pairs", type=int, default=21)
    made.add_argument("--only", default="", help="of our kernels, those whose name holds this")
    made.add_argument("--no-rivals", action="store_true")
    made.add_argument(
        "--library", help="measure this one alone, in the process's own environment, and print JSON"
    )
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.library:
        print(
            json.dumps(
                [
                    asdict(each)
                    for each in measured(RIVALS[options.library](), options.library, options.pairs)
                ]
            )
        )
        return
    found: list[Rate] = []
    for level in options.levels:
        with native.using(level):
            found += measured(
                (case for case in ours() if options.only in case[0]), level, options.pairs
            )
    found += measured(limits(), "torch", options.pairs)
    wanted = [WANTED.get(each.name) for each in found]
    rows = [
        (
            each.name,
            each.level,
            f"{each.ratio:.2f}",
            f"{each.low:.2f} to {each.high:.2f}",
            *_wanted(each, want),
        )
        for each, want in zip(found, wanted, strict=True)
    ]
    table(("kernel", "build", "rate / memcpy", "quartiles", "at least", "aim", ""), rows)
    rivals: dict[str, Any] = {}
    if not options.no_rivals:
        for library in RIVALS:
            rivals[library] = rival(library, options.pairs)
        rows = [(library, *_words(each)) for library, told in rivals.items() for each in told]
        table(("library", "call", "rate / memcpy", "quartiles"), rows)
    emit(
        options.json,
        {"values": N, "threads": 1, "kernels": [asdict(each) for each in found], "rivals": rivals},
    )


def _wanted(rate: Rate, want: tuple[float, float, float] | None) -> tuple[str, str, str]:
    if want is None or rate.level not in ("avx2", "avx512"):
        return "–", "–", ""
    least = want[0] if rate.level == "avx512" else want[1]
    return (
        f"{least:.2f}",
        f"{want[2]:.2f}",
        "met" if rate.ratio >= least else f"missed by {1 - rate.ratio / least:.0%}",
    )


def _words(each: dict[str, Any]) -> tuple[str, str, str]:
    if "error" in each:
        return "–", each["error"][:80], ""
    return each["name"], f"{each['ratio']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}"


def measured(
    cases: Iterator[tuple[str, Callable[[], object], int]], level: str, pairs: int
) -> list[Rate]:
    """Each case beside memcpy. A case: its name, the call, and the bytes of the values that it
    reads or writes."""
    source, target = torch.ones(N), torch.empty(N)

    def copy() -> None:
        ctypes.memmove(target.data_ptr(), source.data_ptr(), 4 * N)

    out, seconds = [], {}
    for name, work, nbytes in cases:
        work()
        copy()
        ratios, times = [], []
        for _ in range(pairs):
            took, copied = _timed(work), _timed(copy)
            ratios.append(copied / took * nbytes / (4 * N))
            times.append(took)
        seconds[name] = statistics.median(times)
        if "over decode-accumulate" in name:
            again = 4 * seconds["int8 decode-accumulate"]
            ratios = [again / each for each in times]
        quarters = statistics.quantiles(ratios, n=4)
        out.append(
            Rate(
                name,
                level,
                statistics.median(ratios),
                quarters[0],
                quarters[2],
                nbytes / seconds[name] / 1e9,
            )
        )
    return out


def _timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def ours() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Our kernels at the level in use."""
    x, before = (torch.randn(N, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    kernels = native.library(x)
    assert kernels is not None
    lib = kernels.lib
    payload, out = torch.empty(4 * (N // BLOCK) + N, dtype=torch.uint8), torch.zeros(N)
    to = payload.data_ptr()
    for dtype, kind, word in TYPES:
        given = x.to(dtype)
        for name, bits, lots in (
            ("int8 encode", 8, 0),
            ("int4 encode", 4, 0),
            ("int8 encode, stochastic", 8, 1),
        ):
            last = (N, BLOCK, bits, 0, lots, 1, 2, to, 1)
            yield (
                name + word,
                lambda given=given, kind=kind, last=last: lib.grid_encode(
                    given.data_ptr(), kind, None, *last
                ),
                given.nbytes,
            )
        yield (
            "sign encode" + word,
            lambda given=given, kind=kind: lib.sign_encode(given.data_ptr(), kind, N, BLOCK, to, 1),
            given.nbytes,
        )
    lib.grid_encode(x.data_ptr(), 0, None, N, BLOCK, 8, 0, 0, 0, 0, to, 1)
    signs = torch.empty(4 * (N // BLOCK) + N // 8, dtype=torch.uint8)
    lib.sign_encode(x.data_ptr(), 0, N, BLOCK, signs.data_ptr(), 1)
    for dtype, kind, word in TYPES:
        total = torch.zeros(N, dtype=dtype)
        for name, add in (("int8 decode", 0), ("int8 decode-accumulate", 1)):
            last = (add, total.data_ptr(), kind, 1)
            yield (
                name + word,
                lambda last=last: lib.grid_decode(to, N, BLOCK, 8, 0, *last),
                total.nbytes,
            )
        last = (0, total.data_ptr(), kind, 1)
        yield (
            "sign decode" + word,
            lambda last=last: lib.sign_decode(signs.data_ptr(), N, BLOCK, *last),
            total.nbytes,
        )
    copies = [payload.clone() for _ in range(4)]
    four = (c_void_p * 4)(*(each.data_ptr() for each in copies))
    again = torch.empty_like(payload)
    yield (
        "int8 decode-4-sum-encode, over decode-accumulate",
        lambda: lib.grid_sum_encode(four, 4, N, BLOCK, 8, 0, 0, 0, 0, again.data_ptr(), 1),
        16 * N,
    )
    narrow = x.bfloat16()
    stored = {
        "residual": before,
        "residual in bf16": before.bfloat16(),
        "residual in int8": int8.pack(before),
    }
    for (name, residual), (gradient, kind, word) in product(
        stored.items(), ((x, 0, ""), (narrow, 1, ", of bf16"))
    ):
        kept, form = torch.empty_like(residual), list(stored).index(name)
        sums = (gradient.data_ptr(), kind, residual.data_ptr(), form, 1.0, N, BLOCK)
        title = name + word
        for bits in (8, 4):
            last = (bits, 0, 0, 0, 0, to, kept.data_ptr(), 1)
            yield (
                f"int{bits} feedback + encode + {title}",
                lambda sums=sums, last=last: lib.grid_encode_left(*sums, *last),
                gradient.nbytes,
            )
        last = (to, kept.data_ptr(), 1)
        yield (
            f"sign feedback + encode + {title}",
            lambda sums=sums, last=last: lib.sign_encode_left(*sums, *last),
            gradient.nbytes,
        )
    codecs: dict[str, Any] = {
        "sampled threshold, 1 %": sampled(0.01),
        "top-k 64 of 4096, Elias-Fano, 2-bit values": topk(64, per=4096) >> uniform(2, grid="rise"),
        "exact top-k, 1 %": topk(0.01),
        "uniform(4) as a codec": uniform(4),
        "sign() as a codec": sign(),
    }
    for name, codec in codecs.items():
        yield name, encoder(codec, x), 4 * N
    for name in ("top-k 64 of 4096, Elias-Fano, 2-bit values", "uniform(4) as a codec"):
        yield f"{name}, bf16", encoder(codecs[name], narrow), 2 * N
    for name, values in hard(x):
        for dtype, _, word in TYPES[:2]:
            chunks = values.to(dtype).view(-1, 4096)
            yield (
                f"largest 64 of 4096, {name}{word}",
                lambda chunks=chunks: fast.largest(chunks, 64),
                chunks.nbytes,
            )
    matrix, rows, columns = (
        x.view(-1, 2048),
        x[: 4 * (N // 2048)].view(-1, 4),
        x[: 4 * 2048].view(-1, 4),
    )
    yield "product by 4 columns", lambda: fast.thin_product(matrix, columns), 4 * N
    yield (
        "product by 4 columns, transposed",
        lambda: fast.thin_product(matrix, rows, transposed=True),
        4 * N,
    )
    yield "outer product of 4 columns", lambda: fast.outer(rows, columns, out.view(-1, 2048)), 4 * N
    yield "feedback(uniform(4)) as a codec", flight(feedback(uniform(4)), x), 4 * N
    for store in ("bf16", "int8"):
        yield (
            f'feedback(uniform(4), store="{store}") as a codec',
            flight(feedback(uniform(4), store=store), x),
            4 * N,
        )
    yield (
        "feedback(topk(64, per=4096) >> uniform(2)) as a codec",
        flight(feedback(topk(64, per=4096) >> uniform(2, grid="rise")), x),
        4 * N,
    )


def hard(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield values that a search for the largest finds hard, Gaussian ones first."""
    yield "Gaussian", x
    yield "zero", torch.zeros(N)
    yield "constant", torch.full((N,), 0.37)
    yield "sorted", x.sort().values
    yield "sparse, 1 %", torch.where(torch.arange(N) % 100 == 7, x, 0.0)
    yield "denormal", x * 1e-40
    yield "one outlier a chunk", torch.where(torch.arange(N) % 4096 == 77, 1e30, x)


def limits() -> Iterator[tuple[str, Callable[[], object], int]]:
    """What memory alone takes where a kernel must read or write as much: nothing is computed but a
    sum."""
    x, before = torch.randn(N), torch.randn(N)
    out, left = torch.zeros(N), torch.empty(N)
    yield "limit of sign encode: read x (x.sum())", x.sum, 4 * N
    yield (
        "limit of decode-accumulate: out read and written (out.add_(1))",
        lambda: out.add_(1),
        4 * N,
    )
    yield (
        "limit of feedback: x and before read, left written (torch.add)",
        lambda: torch.add(x, before, out=left),
        4 * N,
    )
    yield "... and before written in place (before.add_(x))", lambda: before.add_(x), 4 * N


SEAT = RankContext(0, (0,), 0, 0)


def spec_of(x: Tensor) -> Spec:
    """One parameter."""
    return Spec((Part("w", (4096, x.numel() // 4096), 0, "matrix"),), 0, x.numel(), x.dtype)


def encoder(codec: Coder, x: Tensor) -> Callable[[], object]:
    """`encode`, what it allocates included."""
    spec = spec_of(x)
    state = codec.init(spec, SEAT)
    return lambda: codec.encode(x, spec, state, SEAT)


def flight(codec: feedback, x: Tensor) -> Callable[[], object]:
    """Until the packet is there and the residual settled."""
    spec = spec_of(x)
    state = codec.init(spec, SEAT)
    return lambda: next(codec.rounds(x, spec, state, SEAT))


def of_torch() -> Iterator[tuple[str, Callable[[], object], int]]:
    """torch's own quantiser, our reference run eagerly, and compiled by inductor."""
    x = torch.randn(N)
    scale = float(x.abs().max()) / 127
    yield (
        "quantize_per_tensor, int8",
        lambda: torch.quantize_per_tensor(x, scale, 0, torch.qint8),
        4 * N,
    )
    said = torch.quantize_per_tensor(x, scale, 0, torch.qint8)
    yield "dequantize, int8", said.dequantize, 4 * N
    yield (
        "eager, int8 blocks of 256",
        lambda: reference.grid_encode(x, BLOCK, 8, "tread", None),
        4 * N,
    )

    def blocks(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.view(-1, BLOCK)
        steps = rows.abs().amax(1, keepdim=True) / 127
        return steps, torch.round(rows / steps.clamp(min=1e-30)).to(torch.int8)

    compiled = torch.compile(blocks, dynamic=False)
    yield "torch.compile, int8 blocks of 256", lambda: compiled(x), 4 * N
    yield "topk, 1 %", lambda: x.abs().topk(N // 100, sorted=False), 4 * N
    m, p, q = x.view(-1, 2048), torch.randn(N // 2048, 4), torch.randn(2048, 4)
    into = torch.empty_like(m)
    yield "mm, by 4 columns", lambda: m @ q, 4 * N
    yield "mm, by 4 columns, transposed", lambda: m.T @ p, 4 * N
    yield "mm, 4 columns by 4 rows", lambda: torch.mm(p, q.T, out=into), 4 * N


def of_bitsandbytes() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Its blockwise quantisers."""
    from bitsandbytes import functional as bnb

    x, code = torch.randn(N), bnb.create_linear_map()
    yield (
        "quantize_blockwise, linear, 256",
        lambda: bnb.quantize_blockwise(x, code=code, blocksize=BLOCK),
        4 * N,
    )
    said, state = bnb.quantize_blockwise(x, code=code, blocksize=BLOCK)
    yield "dequantize_blockwise, 256", lambda: bnb.dequantize_blockwise(said, state), 4 * N
    yield (
        "quantize_4bit, nf4, 256",
        lambda: bnb.quantize_4bit(x, blocksize=BLOCK, quant_type="nf4"),
        4 * N,
    )


def of_hivemind() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Its compressions, messages included."""
    from hivemind import compression
    from hivemind.compression.base import CompressionInfo

    x = torch.randn(N)
    for name in ("Float16Compression", "Uniform8BitQuantization", "BlockwiseQuantization"):
        codec = getattr(compression, name)()
        yield name, lambda codec=codec: codec.compress(x, CompressionInfo.from_tensor(x)), 4 * N


def of_piquant() -> Iterator[tuple[str, Callable[[], object], int]]:
    """One scale a tensor, found anew in each call as our blocks' are."""
    import piquant

    x = torch.randn(N)
    for name, dtype in (("uint8", torch.quint8), ("uint4", torch.quint4x2)):
        for rounding in ("nearest", "stochastic"):

            def work(dtype: torch.dtype = dtype, rounding: str = rounding) -> object:
                scale, zero = piquant.torch.compute_quant_params(x, dtype=dtype)
                return piquant.torch.quantize(
                    x, scale=scale, zero_point=zero, dtype=dtype, round_mode=rounding
                )

            yield f"quantize, {name}, {rounding}", work, 4 * N


RIVALS: dict[str, Callable[[], Iterator[tuple[str, Callable[[], object], int]]]] = {
    "torch": of_torch,
    "bitsandbytes": of_bitsandbytes,
    "hivemind": of_hivemind,
    "pi-quant": of_piquant,
}


def rival(library: str, pairs: int) -> list[dict[str, Any]]:
    """A library in its environment; its error where it cannot be installed or run."""
    try:
        python = python_for(REQUIRES[library], cache_folder() / "bench")
        command = [
            str(python),
            "-m",
            "benchmarks.kernels",
            "--library",
            library,
            "--pairs",
            str(pairs),
        ]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
        )
    except BenchError as error:
        return [{"error": str(error)}]
    if done.returncode:
        return [
            {
                "error": done.stderr.strip().splitlines()[-1]
                if done.stderr.strip()
                else f"exit code {done.returncode}"
            }
        ]
    told: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    sys.exit(main())
