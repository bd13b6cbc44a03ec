"""The tables of docs/what/entropy.md, cp.md and budget.md, and what stands in docs/families.md of
the largest entries, as Markdown.

    python scripts/real_gradients.py gradient.safetensors python scripts/conv_gradients.py
    convolutions.safetensors python -m benchmarks.codec_pages gradient.safetensors
    convolutions.safetensors --json benchmarks/results/codec_pages.json

Times are processor time of one thread, the least of five turns, over memcpy's in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from benchmarks.common import emit, parser
from thinwire.core import Coder, RankContext, Spec
from thinwire.planner.codecs import laid, read, round_trip
from thinwire.what import (
    budget,
    cast,
    cp,
    entropy,
    hadamard,
    identity,
    svd,
    tensortrain,
    topk,
    tucker,
    uniform,
)
from thinwire.what.wrap.entropy import _coder, _parted, _shorter

SEAT = RankContext(rank=0, group=(0,), step=0, seed=0)
TURNS = 5
SHARES = (0.01, 0.02, 0.04, 0.08, 0.16)  # of the bytes
ANYTHING = (0, 2, 3, 4, 5, 6, 7, 8)
FOLD = 9  # SmolLM2's heads
FEW_OF = 1000  # the largest of so many entries


def main() -> None:
    made = parser(__doc__)
    made.add_argument("gradient", type=Path, help="of scripts/real_gradients.py")
    made.add_argument("convolutions", type=Path, help="of scripts/conv_gradients.py")
    made.add_argument(
        "--only",
        choices=("entropy", "cp", "budget", "largest"),
        action="append",
        help="all without",
    )
    asked = made.parse_args()
    torch.set_num_threads(1)
    gradient, convolutions = read(asked.gradient), read(asked.convolutions)
    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "entropy": lambda: coded(gradient),
        "cp": lambda: factored(groups(gradient, convolutions)),
        "budget": lambda: budgeted(gradient),
        "largest": largest,
    }
    told = {}
    for name, section in sections.items():
        if asked.only and name not in asked.only:
            continue
        told[name] = section()
        print(f"## {name}\n\n{markdown(told[name])}\n", flush=True)
    emit(asked.json, told)


def coded(gradient: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Bytes of a coded payload over those of the payload, and how fast it is coded and opened."""
    x, spec = laid(gradient)
    copy = _copy_bytes_s()
    plain, unpack, rows = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor(), []
    inners: list[Coder] = [identity(), cast("bf16"), uniform(8), uniform(4), topk(0.01)]
    for inner in inners:
        outer, state = entropy(inner), inner.init(spec, SEAT)
        payload = inner.encode(x, spec, state, SEAT)
        told, raw, n = (
            outer.encode(x, spec, state, SEAT),
            payload.numpy().tobytes(),
            payload.numel(),
        )
        planes = [plane.copy() for plane in _parted(payload, outer._planes(spec)).numpy()]
        code_s = _least_s(
            lambda payload=payload, outer=outer: [
                _shorter(_coder(), each) for each in _parted(payload, outer._planes(spec)).numpy()
            ]
        )
        open_s = _least_s(lambda told=told, outer=outer: outer._raw(told, spec))
        packed = plain.compress(raw)
        rows.append(
            {
                "inner": repr(inner),
                "entropy": told.numel() / n,
                "no planes": len(_coder().compress(raw)) / n,
                "zstd 3": len(packed) / n,
                "zstd 3 of planes": sum(len(plain.compress(each)) for each in planes) / n,
                "code": n / code_s / copy,
                "open": n / open_s / copy,
                "zstd 3: code": n / _least_s(lambda raw=raw: plain.compress(raw)) / copy,
                "zstd 3: open": n
                / _least_s(lambda packed=packed: unpack.decompress(packed))
                / copy,
                "pays below, Gb/s": 8e-9 * (n - told.numel()) / (code_s + open_s),
                "bits a value": 8 * told.numel() / spec.numel,
            }
        )
    inside = round_trip(topk(0.01) >> entropy(), x, spec, SEAT)
    return [
        *rows,
        {
            "inner": "topk(0.01) >> entropy()",
            "bits a value": 8 * inside.nbytes / spec.numel,
            "memcpy, GB/s": copy / 1e9,
        },
    ]


def groups(
    gradient: Mapping[str, Tensor], convolutions: Mapping[str, Tensor]
) -> dict[str, tuple[list[Tensor], int]]:
    """Tensors that are said together, and how a matrix is folded."""
    kinds = {"query weights": "q_proj", "MLP down weights": "down_proj"}
    steps = sorted(
        {name.partition(".")[0] for name in convolutions},
        key=lambda step: int(step.removeprefix("step")),
    )
    return {
        **{
            f"three convolutions, {step}": (
                [x for name, x in convolutions.items() if name.startswith(f"{step}.")],
                0,
            )
            for step in steps
        },
        **{
            kind: ([x for name, x in gradient.items() if word in name], FOLD)
            for kind, word in kinds.items()
        },
    }


def factored(groups: Mapping[str, tuple[list[Tensor], int]]) -> list[dict[str, Any]]:
    """Error of each factored codec at the most bytes that do not exceed a share, each tensor
    alone."""
    rows = []
    for name, (tensors, fold) in groups.items():
        spans = [laid({"x": x}) for x in tensors]
        makes: dict[str, list[Coder]] = {
            "cp": [cp(rank, fold) for rank in range(1, 400)],
            "tucker": [tucker(step / 500, fold) for step in range(1, 500)],
            "tensortrain": [tensortrain(rank, fold) for rank in range(1, 400)],
            "svd": [svd(rank) for rank in range(1, 400)],
        }
        for share in SHARES:
            row: dict[str, Any] = {"gradient": name, "share": share}
            for kind, codecs in makes.items():
                room = share * sum(4 * spec.numel for _, spec in spans)
                fitting = [
                    codec
                    for codec in codecs
                    if sum(codec.max_nbytes(spec) for _, spec in spans) <= room
                ]
                row[kind] = _together(fitting[-1], spans) if fitting else None
                if fitting and share == 0.04:
                    row[f"{kind}, ms"] = 1e3 * _least_s(
                        lambda codec=fitting[-1], spans=spans: [
                            _said(codec, x, spec) for x, spec in spans
                        ]
                    )
            rows.append(row)
    return rows


def budgeted(gradient: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Error of `uniform` over that of `budget` in as many bytes."""
    x, spec = laid(gradient)
    rows = []
    for bits in (2, 3, 4):
        base = round_trip(uniform(bits), x, spec, SEAT)  # type: ignore[arg-type]
        codecs: dict[str, Coder] = {
            "budget": budget(float(bits)),
            "with 0": budget(float(bits), ANYTHING),
            "rotated, with 0": hadamard(256) >> budget(float(bits), ANYTHING),
        }
        row: dict[str, Any] = {"bits": bits, "error of uniform": base.error}
        for name, codec in codecs.items():
            told = round_trip(codec, x, spec, SEAT)
            row |= {name: base.error / told.error, f"{name}, bytes": told.nbytes / base.nbytes}
        for name, codec in {"uniform": uniform(bits), **codecs}.items():  # type: ignore[arg-type]
            row[f"{name}, encode s"] = _least_s(lambda codec=codec: _said(codec, x, spec))
        rows.append(row)
    return rows


def largest() -> list[dict[str, Any]]:
    """In feedback, under SGD with momentum: of what is due to the largest entries of a gradient,
    how much a codec says at once."""
    from benchmarks.families import Run, Task

    task, rows = Task(), []
    for code in (
        "uniform(2)",
        "hadamard(256) >> uniform(2, scale='mse')",
        "hadamard(256) >> uniform(2)",
        "uniform(2, scale='mse')",
    ):
        seen: list[tuple[float, float]] = []

        def look(
            step: int,
            x: Tensor,
            before: Tensor,
            after: Tensor,
            seen: list[tuple[float, float]] = seen,
        ) -> None:
            if step >= 100 and step % 10 == 0:
                due = x + before
                at = x.abs().topk(x.numel() // FEW_OF).indices
                seen.append(
                    (
                        float((due - after)[at] @ due[at] / (due[at] @ due[at])),
                        float(after.norm() / due.norm()),
                    )
                )

        ended = task.trained(Run(f"feedback({code})", "sgd", 0.3, 0), look)
        said, error = torch.tensor(seen).mean(0).tolist()
        rows.append(
            {"codec": code, "said at once": said, "error": error, "nats": ended.get("nats")}
        )
    return rows


def _together(codec: Coder, spans: list[tuple[Tensor, Spec]]) -> float:
    """||Q(x) - x|| / ||x|| of some tensors, each alone."""
    errors = [
        round_trip(codec, x, spec, SEAT).error * float(x.double().norm()) for x, spec in spans
    ]
    return (
        sum(each**2 for each in errors) ** 0.5
        / sum(float(x.double().norm()) ** 2 for x, _ in spans) ** 0.5
    )


def _said(codec: Coder, x: Tensor, spec: Spec) -> Tensor:
    return codec.encode(x, spec, codec.init(spec, SEAT), SEAT)


def _least_s(work: Callable[[], object]) -> float:
    """Processor time of this thread, seconds, of the quickest of some turns."""
    took = []
    for _ in range(TURNS):
        begun = time.thread_time()
        work()
        took.append(time.thread_time() - begun)
    return min(took)


def _copy_bytes_s() -> float:
    source, target = torch.ones(16 << 20), torch.empty(16 << 20)
    return source.nbytes / _least_s(lambda: target.copy_(source))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of all that the rows have."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key)) for key in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def _cell(value: Any) -> str:
    return (
        "–"
        if value is None
        else f"{value:.3f}"
        if isinstance(value, float)
        else f"`{value}`"
        if "(" in str(value)
        else str(value)
    )


if __name__ == "__main__":
    main()
