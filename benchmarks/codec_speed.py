"""How long every codec takes: ns a value to encode and to decode, and GB/s of float32, 16 MB, one
thread.

    python -m benchmarks.codec_speed --json benchmarks/results/codec_speed.json
    python -m benchmarks.codec_speed --only hadamard

A matrix of 2048 × 2048 normal values; the least processor time of at least three turns and 0.2 s.
Codecs that talk in several rounds have all their work, the sum's too, under encode. With --json,
the figures that the file has as "before" stay beside those measured now; --before writes those.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import thinwire.what  # noqa: F401  (its members are what is spelled)
from benchmarks.common import emit, parser, table, with_kept
from thinwire.kernels import native
from thinwire.planner.codecs import copy_gb_s, gaussian, measured
from thinwire.strategy.reading import spelled

N = 1 << 22
GOAL = 1.0  # GB/s of float32, each way
CODECS = (
    "identity()",
    "cast('bf16')",
    "uniform(8)",
    "uniform(4)",
    "uniform(4, rounding='stochastic')",
    "uniform(4, scale='mse')",
    "uniform(4, scale='norm', rounding='stochastic')",
    "uniform(4, scale='sigma', at=3.0)",
    "uniform(4, grid='affine')",
    "uniform(4, grid='point')",
    "uniform(4, step=0.5)",
    "sign()",
    "hadamard(256) >> uniform(4)",
    "hadamard(64) >> uniform(4, block=64)",
    "nf4()",
    "nf4(rounding='stochastic')",
    "fp4()",
    "fp4('e3m0', rounding='stochastic')",
    "fp8()",
    "fp8('e5m2')",
    "fp8(rounding='stochastic')",
    "loglevels()",
    "powerlevels()",
    "powerlevels(4)",
    "natural()",
    "natural('nearest')",
    "ternary()",
    "ternary(rounding='nearest')",
    "ternary(clip=2.5)",
    "scaled(32) >> nf4(0)",
    "topk(0.01)",
    "topk(64, per=4096) >> uniform(2, grid='rise')",
    "sampled(0.01)",
    "threshold(2.0)",
    "threshold(2.0, of='rms')",
    "randomk(0.01)",
    "randomk(0.1)",
    "blockk(0.1, 64)",
    "dct(64) >> topk(32, per=4096)",
    "dct(64) >> uniform(4)",
    "entropy()",
    "entropy(uniform(4))",
    "lowrank(4)",
    "svd(4)",
    "als(4)",
    "lattice()",
    "codebook()",
    "tensortrain(4)",
    "tucker(0.5)",
    "cp(4)",
)


@dataclass(frozen=True)
class Speed:
    """One codec: ns a value, and GB/s of what it encodes; `when` is "before" or "now"."""

    codec: str
    when: str
    encode_ns: float
    decode_ns: float | None
    encode_gb_s: float
    decode_gb_s: float | None

    @property
    def slower(self) -> float:
        """GB/s of the slower of both ways."""
        return min(self.encode_gb_s, self.decode_gb_s or self.encode_gb_s)


def main() -> None:
    made = parser(__doc__)
    made.add_argument(
        "--only", nargs="*", default=[""], help="codecs whose code holds one of these"
    )
    made.add_argument("--before", action="store_true", help="write as what was before")
    options = made.parse_args()
    torch.set_num_threads(1)
    when = "before" if options.before else "now"
    copy, tensors, found = copy_gb_s(), gaussian(N), []
    for code in CODECS:
        if not any(word in code for word in options.only):
            continue
        figures = measured(spelled("what", code), tensors, copy, time.process_time)
        decode = figures.decode_gb_s
        found.append(
            Speed(
                code,
                when,
                4 / figures.encode_gb_s,
                None if decode is None else 4 / decode,
                figures.encode_gb_s,
                decode,
            )
        )
    earlier = {} if options.before else _before(options.json)
    table(
        ("codec", "encode ns", "decode ns", "encode GB/s", "decode GB/s", "before", ""),
        [(*_cells(each), _words(earlier.get(each.codec)), _verdict(each)) for each in found],
    )
    rows = [vars(each) for each in found]
    emit(
        options.json,
        {
            "values": N,
            "threads": 1,
            "kernels": native.chosen(),
            "copy_gb_s": copy,
            "rows": with_kept(options.json, rows, "codec", "when"),
        },
    )


def _before(file: Path | None) -> dict[str, dict[str, Any]]:
    rows = json.loads(file.read_text())["rows"] if file is not None and file.exists() else []
    return {row["codec"]: row for row in rows if row["when"] == "before"}


def _cells(each: Speed) -> tuple[str, ...]:
    figures = (each.encode_ns, each.decode_ns, each.encode_gb_s, each.decode_gb_s)
    return each.codec, *("–" if figure is None else f"{figure:.2f}" for figure in figures)


def _words(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    figures = (row["encode_gb_s"], row["decode_gb_s"])
    return " | ".join("–" if figure is None else f"{figure:.2f}" for figure in figures)


def _verdict(each: Speed) -> str:
    return "" if each.slower >= GOAL else f"below {GOAL:g}"


if __name__ == "__main__":
    main()
