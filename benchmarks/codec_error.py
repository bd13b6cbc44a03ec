"""Error at equal bytes: ours beside every codec of torch, torchao, bitsandbytes, hivemind and
pi-quant, on saved gradients.

    python scripts/real_gradients.py gradient.safetensors
    python scripts/real_gradients.py --steps 10 delta.safetensors
    python -m benchmarks.codec_error gradient.safetensors delta.safetensors --json
        benchmarks/results/codec_error.json
    # held out: nothing is chosen on it
    python -m benchmarks.codec_error other.safetensors --chosen benchmarks/results/codec_error.json

What theirs make of a gradient `benchmarks.rival_codecs` tells, each in an environment of its own,
built at first use. Beside each stands one setting of ours, the same for all gradients: of those of
the same kind that need no more bytes on any, the one whose error over theirs, where that is
largest, is least. Ours is given what theirs was given: one tensor at a time, or one bucket.

A library that cannot be installed or run is reported with its error. The table has the closest row
of each kind; --all shows every row.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import emit, parser
from benchmarks.rival_codecs import LIBRARIES, REQUIRES, TURNS, WARM, Gradient
from thinwire.bench.environments import python_for
from thinwire.core import Codec, RankContext, Spec, State
from thinwire.data.cache import cache_folder
from thinwire.errors import BenchError
from thinwire.planner.codecs import laid
from thinwire.strategy.reading import spelled
from thinwire.what import (
    cast,
    codebook,
    fp4,
    fp8,
    loglevels,
    lowrank,
    nf4,
    powerlevels,
    scaled,
    svd,
    uniform,
)

BLOCKS = (32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 0)
SHORT = (
    12,
    13,
    15,
    17,
    20,
    24,
    26,
    33,
    40,
    51,
    65,
    97,
    129,
    193,
    257,
    385,
    513,
    1025,
    2049,
    4097,
    0,
)  # of scales of one byte
PAIRED = tuple(2 * block for block in SHORT)  # of a scale and a zero point of one byte each
SMALLEST = 2  # of the blocks that fit, so many are tried: the smaller, the closer
PATIENCE_S = 3600.0
AS_GOOD = 1.001  # a ratio up to which two codecs do the same sums in another order
ROOT = Path(__file__).parents[1]


def settings(kind: str) -> list[list[Codec]]:
    """Ours that are of a kind, those that differ in the block alone together; what is of another
    kind (a rotation first) is left out."""
    name, _, rest = kind.partition(" ")
    if name == "uniform":
        return _uniform(*rest.split())
    alone: list[Codec] = []
    if kind == "cast fp16 zero":
        return [
            [scaled(block, "mean", zero=True) >> cast("fp16") for block in BLOCKS if block]
        ]  # whole blocks a row, whose mean theirs is
    if kind == "cast fp16":
        alone = [cast("fp16"), cast("bf16")]
    elif kind == "cast bf16":
        alone = [cast("bf16")]
    elif name == "cold":
        alone = [lowrank(_rank(rest)), svd(_rank(rest))]
    elif name == "warm":
        alone = [lowrank(_rank(rest))]
    powers = [powerlevels(8, power) for power in (1.5, 2.0, 3.0)]
    blocked: dict[str, list[Codec]] = {
        "cast fp16": [cast("fp16")],
        "fp8 e4m3": [fp8("e4m3")],
        "fp8 e5m2": [fp8("e5m2")],
        "fp4": [fp4("e2m1")],
        "nf4": [nf4()],
        "8-bit floats": [
            fp8("e4m3"),
            fp8("e5m2"),
            *(loglevels(8, smallest) for smallest in (1e-2, 1e-3, 1e-4)),
            *powers,
        ],
        "table 8": [
            codebook(1, 8, refresh=0),
            *(loglevels(8, smallest) for smallest in (1e-3, 1e-4)),
            *powers,
        ],  # levels that are not even
    }
    found = [[each] for each in alone]
    for each in blocked.get(kind, []):
        if not isinstance(each, cast):
            found.append(
                [
                    replace(each, block=block)
                    for block in BLOCKS
                    if block or not isinstance(each, codebook)
                ]
            )  # type: ignore[type-var]
        whole = each if isinstance(each, cast | codebook) else replace(each, block=0)  # type: ignore[type-var]
        found.append(
            [
                scaled(block, "cover" if isinstance(each, cast) else "near") >> whole
                for block in SHORT
            ]
        )
        if isinstance(each, nf4 | fp4 | fp8) and len(blocked[kind]) == 1:
            found.append(
                [
                    scaled(block, "nf4" if isinstance(each, nf4) else each.format) >> whole
                    for block in SHORT
                ]
            )
    if not found:
        raise ValueError(f"no codec of ours is of the kind {kind!r}")
    return found


def _uniform(width: str, *more: str) -> list[list[Codec]]:
    """Uniform grids of so many bits. "stochastic": by lot, cutting no more than theirs; "zero":
    with a zero point; "row": a step a row."""
    bits, by_lot = int(width), "stochastic" in more
    rounding = "stochastic" if by_lot else "nearest"
    scales = ("absmax",) if by_lot else ("absmax", "mse")
    sided = ("point", "affine")
    grids = (
        sided if "zero" in more else ("tread", *sided, "rise") if bits < 4 else ("tread", *sided)
    )
    plain = [uniform(bits, 0, rounding, None, grid, scale) for grid in grids for scale in scales]  # type: ignore[arg-type]  # literals
    if by_lot:
        plain.append(uniform(bits, 0, "stochastic", grid="point", scale="range"))  # type: ignore[arg-type]
    if "row" in more:
        return [[replace(each, block="row")] for each in plain]
    found: list[list[Codec]] = [
        [replace(each, block=block) for block in (*BLOCKS, "row")] for each in plain
    ]
    fit: int | Literal["cover"] = "cover" if by_lot else bits
    around, whole = (
        uniform(bits, 0, rounding, 1 / max(1, 2 ** (bits - 1) - 1)),
        uniform(bits, 0, rounding, grid="rise"),
    )  # type: ignore[arg-type]
    for octave in (16, 32, 64) if bits == 8 else (16,):
        found.append([scaled(block, fit, True, octave) >> whole for block in PAIRED])  # type: ignore[arg-type]
        if "zero" not in more:
            found.append([scaled(block, fit, False, octave) >> around for block in SHORT])  # type: ignore[arg-type]
    return found


def _rank(told: str) -> int:
    return int(told.rpartition(" ")[2])


@dataclass(frozen=True)
class Ours:
    """What a codec of ours makes of a gradient."""

    nbytes: int
    error: float
    errors: dict[str, float]


@dataclass
class Judge:
    """A gradient, and what ours made of it; `kept`: a file that remembers it."""

    gradient: Gradient
    kept: Path | None = None
    _told: dict[str, dict[str, Any]] = field(default_factory=dict)
    _specs: dict[tuple[str, ...], Spec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept is not None and self.kept.exists():
            self._told = json.loads(self.kept.read_text())

    def said(self, codec: Codec, kind: str, spans: Sequence[Sequence[str]]) -> Ours:
        """Bytes and errors, tensors taken as `spans` has them."""
        turns = kind.partition(" ")[0] if kind.startswith(("cold", "warm")) else ""
        key = f"{turns} {codec!r} {json.dumps(spans)}"
        if key not in self._told:
            self._told[key] = asdict(self._measured(codec, turns, spans))
            if self.kept is not None:
                self.kept.write_text(json.dumps(self._told))
        return Ours(**self._told[key])

    def nbytes(self, codec: Codec, spans: Sequence[Sequence[str]]) -> int:
        """The most that it needs."""
        return sum(codec.max_nbytes(self._spec(tuple(span))) for span in spans)

    def _spec(self, span: tuple[str, ...]) -> Spec:
        if span not in self._specs:
            self._specs[span] = laid({name: self.gradient[name] for name in span})[1]
        return self._specs[span]

    def _measured(self, codec: Codec, turns: str, spans: Sequence[Sequence[str]]) -> Ours:
        """`turns`: "cold" takes as many first flights as theirs, of so many seeds, "warm" the last
        of as many flights of one seed."""
        runs = [
            self._flown(codec, spans, seed, WARM + 1 if turns == "warm" else 1)
            for seed in range(TURNS if turns == "cold" else 1)
        ]
        return Ours(
            runs[0].nbytes,
            (sum(each.error**2 for each in runs) / len(runs)) ** 0.5,
            {
                name: (sum(each.errors[name] ** 2 for each in runs) / len(runs)) ** 0.5
                for name in self.gradient
            },
        )

    def _flown(self, codec: Codec, spans: Sequence[Sequence[str]], seed: int, flights: int) -> Ours:
        nbytes, wrong, size = 0, {}, {}
        for span in spans:
            tensors = {name: self.gradient[name] for name in span}
            x, spec = laid(tensors)
            ctx = RankContext(rank=0, group=(0,), step=0, seed=seed)
            state = codec.init(spec, ctx)
            for step in range(flights):
                told, value = _spoken(codec, x, spec, state, replace(ctx, step=step))
            nbytes += told
            for part in spec.parts:
                exact = x[part.begin : part.end].double()
                wrong[part.name] = float((value[part.begin : part.end].double() - exact).norm())
                size[part.name] = float(exact.norm())
        total = (
            sum(each**2 for each in wrong.values()) / sum(each**2 for each in size.values())
        ) ** 0.5
        return Ours(nbytes, total, {name: wrong[name] / size[name] for name in self.gradient})


def _spoken(
    codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
) -> tuple[int, Tensor]:
    """The bytes of one flight that one rank alone sends, and what arrives of it."""
    talk, nbytes = codec.rounds(x, spec, state, ctx), 0
    try:
        packet = next(talk)
        while True:
            nbytes += packet.payload.numel()
            packet = talk.send(packet.open(packet.payload.clone(), ctx.rank))
    except StopIteration as end:
        return nbytes, end.value.total


@dataclass(frozen=True)
class Row:
    """A codec of theirs beside ours, on each gradient by its name."""

    library: str
    codec: str
    kind: str
    ours: str
    bits: dict[str, tuple[float, float]]
    errors: dict[str, tuple[float, float]]
    ratios: dict[str, float]
    tensors: dict[str, dict[str, tuple[float, float]]]

    @property
    def ratio(self) -> float:
        """Our error over theirs, of the gradient where it is largest."""
        return max(self.ratios.values())

    def worst(self) -> tuple[float, str]:
        """The same of the tensor where it is largest, and which."""
        return max(
            (over(*pair), name) for each in self.tensors.values() for name, pair in each.items()
        )


def over(ours: float, theirs: float) -> float:
    """1 where both lose nothing."""
    return ours / theirs if theirs else 1.0 if not ours else float("inf")


def beside(
    library: str,
    said: dict[str, dict[str, Any]],
    judges: dict[str, Judge],
    chosen: Codec | None = None,
) -> Row:
    """One codec of theirs, as it did on each gradient, and the setting of ours that stands beside
    it: `chosen`, or the best that fits."""
    first = next(iter(said.values()))
    fitting: list[Codec] = (
        [] if chosen is None else [chosen]
    )  # of other sizes it may need a little more than theirs; the row says
    for family in settings(first["kind"]) if chosen is None else []:
        sizes = {
            codec: [judges[name].nbytes(codec, each["spans"]) for name, each in said.items()]
            for codec in family
        }
        small = [
            codec
            for codec in family
            if all(
                size <= each["nbytes"]
                for size, each in zip(sizes[codec], said.values(), strict=True)
            )
        ]
        fitting += sorted(small, key=lambda codec: -sum(sizes[codec]))[:SMALLEST]
    if not fitting:
        raise BenchError(
            f"no setting of ours of the kind {first['kind']!r} needs no more bytes than "
            f"{first['codec']}"
        )

    def told(codec: Codec) -> dict[str, Ours]:
        return {
            name: judges[name].said(codec, first["kind"], each["spans"])
            for name, each in said.items()
        }

    best = min(
        fitting,
        key=lambda codec: max(
            over(ours.error, said[name]["error"]) for name, ours in told(codec).items()
        ),
    )
    ours = told(best)
    values = {name: sum(x.numel() for x in judges[name].gradient.values()) for name in said}
    return Row(
        *(library, first["codec"], first["kind"], repr(best)),
        bits={
            name: (8 * ours[name].nbytes / values[name], 8 * each["nbytes"] / values[name])
            for name, each in said.items()
        },
        errors={name: (ours[name].error, each["error"]) for name, each in said.items()},
        ratios={name: over(ours[name].error, each["error"]) for name, each in said.items()},
        tensors={
            name: {part: (ours[name].errors[part], error) for part, error in each["errors"].items()}
            for name, each in said.items()
        },
    )


def rivals(
    library: str, gradients: dict[str, Path], environments: Path, kept: Path | None
) -> Iterator[dict[str, dict[str, Any]]]:
    """Each codec of a library, as it did on each gradient. `kept`: where what it said is kept, and
    read if it is there.

    Raises:
        BenchError: the library cannot be installed or run; the last line of what it said.
    """
    python, found = None, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in gradients.items():
            out = (kept or Path(scratch)) / f"{name}.{library}.json"
            if not out.exists():
                python = python or python_for(REQUIRES[library], environments)
                command = [
                    str(python),
                    "-m",
                    "benchmarks.rival_codecs",
                    library,
                    str(path.resolve()),
                    str(out.resolve()),
                ]
                try:
                    done = subprocess.run(
                        command,
                        capture_output=True,
                        text=True,
                        cwd=ROOT,
                        timeout=PATIENCE_S,
                        check=False,
                    )
                except subprocess.TimeoutExpired as error:
                    raise BenchError(f"{library} did not end within {PATIENCE_S:.0f} s") from error
                if done.returncode:
                    told = done.stderr.strip().splitlines() or ["it said nothing"]
                    raise BenchError(f"{library} ended with {done.returncode}: {told[-1]}")
            found[name] = json.loads(out.read_text())
    for row in zip(*found.values(), strict=True):
        yield dict(zip(found, row, strict=True))


def shown(rows: Sequence[Row], every: bool) -> str:
    """Rows as Markdown: of each library and kind the one where ours is closest, or furthest behind;
    or all."""
    kinds: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[(row.library, row.codec) if every else (row.library, row.kind)].append(row)
    lines = [
        (
            "| library | codec | bits | error | ours | bits | error | ours / theirs | worst "
            "tensor | rows |"
        ),
        f"|{'---|' * 10}",
    ]
    for each in kinds.values():
        row = max(each, key=lambda row: row.ratio)
        worst = max(row.ratios, key=lambda name: row.ratios[name])
        bits, errors = row.bits[worst], row.errors[worst]
        cells = (
            *(
                row.library,
                row.codec,
                f"{bits[1]:.3f}",
                f"{errors[1]:.5f}",
                f"`{_short(row.ours)}`",
                f"{bits[0]:.3f}",
                f"{errors[0]:.5f}",
            ),
            *(
                ", ".join(f"{ratio:.3f}" for ratio in row.ratios.values()),
                f"{row.worst()[0]:.2f}",
                str(len(each)),
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(code: str) -> str:
    """Without what is as by default."""
    for usual in (
        ", rounding='nearest'",
        ", step=None",
        ", grid='tread'",
        ", exact=False, oversample=8, iterations=1",
    ):
        code = code.replace(usual, "")
    return code


def main() -> None:
    made = parser(__doc__)
    made.add_argument("gradients", type=Path, nargs="+", help=".safetensors files")
    made.add_argument("--library", action="append", choices=LIBRARIES, help="all without")
    made.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        help="where theirs are built; default: in Thinwire's cache",
    )
    made.add_argument(
        "--kept",
        type=Path,
        metavar="FOLDER",
        help="keep there what was measured, and take it from there",
    )
    made.add_argument(
        "--chosen",
        type=Path,
        metavar="FILE",
        help="a result of before: take the settings of ours that it has, choose none",
    )
    made.add_argument("--all", action="store_true", help="show every row")
    asked = made.parse_args()
    torch.set_num_threads(1)
    gradients = {path.stem: path for path in asked.gradients}
    judges = {
        name: Judge(load_file(path), asked.kept and asked.kept / f"{name}.ours.json")
        for name, path in gradients.items()
    }
    before = json.loads(asked.chosen.read_text())["rows"] if asked.chosen else []
    chosen = {(row["library"], row["codec"]): spelled("what", row["ours"]) for row in before}
    rows, failed = [], {}
    for library in asked.library or LIBRARIES:
        try:
            said = list(
                rivals(
                    library, gradients, asked.environments or cache_folder() / "rivals", asked.kept
                )
            )
        except BenchError as error:
            failed[library] = str(error)
            print(f"{library}: {error}", file=sys.stderr, flush=True)
            continue
        for each in said:
            rows.append(
                beside(
                    library,
                    each,
                    judges,
                    chosen[library, next(iter(each.values()))["codec"]] if chosen else None,
                )
            )
            print(
                f"{library} {rows[-1].codec}: {rows[-1].ratio:.3f} by {rows[-1].ours}",
                file=sys.stderr,
                flush=True,
            )
    print(shown(rows, asked.all))
    print(
        f"\n{len(rows)} codecs of theirs; ours errs more than {100 * (AS_GOOD - 1):g} % more in "
        f"{sum(row.ratio > AS_GOOD for row in rows)}"
    )
    for library, reason in failed.items():
        print(f"{library}: {reason}")
    sizes = {
        name: {part: list(x.shape) for part, x in judge.gradient.items()}
        for name, judge in judges.items()
    }
    emit(
        asked.json,
        {
            "requires": REQUIRES,
            "gradients": sizes,
            "failed": failed,
            "rows": [asdict(row) for row in rows],
        },
    )


if __name__ == "__main__":
    main()
