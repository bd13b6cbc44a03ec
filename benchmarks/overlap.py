"""What landing in the forward pass, and priority, save: steps of the bench's 12 M-parameter GPT
over emulated links.

    python -m benchmarks.overlap --json benchmarks/results/overlap.json
    # only these cells:
    python -m benchmarks.overlap --only "2 ranks, dense" --json benchmarks/results/overlap.json

Ranks of one thread each in the lab; on two cores, four ranks share them. The same strategy with
`overlap="backward"`, `"forward"` and `"priority"`, in turns; exposed is how long a rank waited for
means in a step. Target: at most 10 % of the step with 4 bits at 1 Gb/s. Clipping is left out: it
looks at all gradients at once.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import emit, parser, table, with_kept
from thinwire.bench.job import Job
from thinwire.bench.networks import swept
from thinwire.bench.running import ran
from thinwire.bench.studies import LARGE
from thinwire.bench.study import bundled
from thinwire.data.cache import cache_folder
from thinwire.how import two_shot
from thinwire.on import gradients
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, uniform
from thinwire.when import every

WARM = 6
MODES = ("backward", "forward", "priority")
DENSE = Strategy(every(1), identity(), two_shot(), gradients())
FOUR = Strategy(every(1), feedback(uniform(4)), two_shot(), gradients())


@dataclass(frozen=True)
class Cell:
    """A strategy on a link: `batch` rows of 64 tokens a rank make compute long or short."""

    name: str
    world: int
    strategy: Strategy
    rate: float
    batch: int
    slice_bytes: int


CELLS = (
    Cell("4 ranks, 4 bits, 1 Gb/s, long", 4, FOUR, 1e9, 8, 4 << 20),
    Cell("2 ranks, dense, 1 Gb/s, long", 2, DENSE, 1e9, 8, 1 << 20),
    Cell("2 ranks, dense, 1 Gb/s, short", 2, DENSE, 1e9, 1, 1 << 20),
    Cell("2 ranks, 4 bits, 100 Mb/s, long", 2, FOUR, 1e8, 8, 4 << 20),
    Cell("2 ranks, 4 bits, 100 Mb/s, short", 2, FOUR, 1e8, 1, 4 << 20),
)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=12)
    made.add_argument("--turns", type=int, default=2)
    made.add_argument("--only", default="", help="cells whose name holds this")
    made.add_argument("--lanes", type=int, default=2)
    made.add_argument("--modes", nargs="*", default=MODES)
    options = made.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    cells = [cell for cell in CELLS if options.only in cell.name]
    for turn in range(options.turns):
        for cell in cells:
            for mode in options.modes if turn % 2 == 0 else options.modes[::-1]:
                found.setdefault((cell.name, mode), []).append(
                    measured(cell, mode, options.steps, options.lanes)
                )
    rows, told = [], []
    for cell in cells:
        base = _mean(found[cell.name, options.modes[0]], "step_s")
        for mode in options.modes:
            turns = found[cell.name, mode]
            step, exposed = _mean(turns, "step_s"), _mean(turns, "exposed_s")
            rows.append(
                (
                    cell.name,
                    mode,
                    f"{step * 1e3:.0f}",
                    f"{exposed * 1e3:.0f}",
                    f"{exposed / step:.1%}",
                    f"{base / step:.2f}",
                )
            )
            told.append({"cell": cell.name, "overlap": mode, "turns": turns})
    table(("cell", "overlap", "step, ms", "exposed, ms", "of the step", "faster"), rows)
    emit(
        options.json,
        {
            "lanes": options.lanes,
            "steps": options.steps,
            "rows": with_kept(options.json if options.only else None, told, "cell", "overlap"),
        },
    )


def measured(cell: Cell, mode: str, steps: int, lanes: int) -> dict[str, float]:
    """The mean step, and how much of it a rank waited; of the slowest rank."""
    attach: dict[str, Any] = {
        "overlap": mode,
        "lanes": lanes,
        "bucket_bytes": 4 << 20,
        "slice_bytes": cell.slice_bytes,
    }
    train, held = bundled(cache_folder() / "bench")
    (network,) = swept(cell.world, (cell.rate,), (0.0,))
    settings = {"strategy": cell.strategy.to_toml(), "attach": attach}
    until = {"steps": 10_000, "stop": WARM + steps, "warm": WARM}
    job = Job(
        "thinwire",
        settings,
        model=LARGE,
        batch=cell.batch,
        train=train,
        held=held,
        clip=0.0,
        **until,
    )
    with network.lab() as lab:
        ranks, _ = ran(lab, job, Path(sys.executable))
    return {
        "step_s": max(statistics.mean(rank["seconds"][WARM:]) for rank in ranks),
        "exposed_s": max(rank["split"]["exposed_s"] / steps for rank in ranks),
    }


def _mean(turns: list[dict[str, float]], what: str) -> float:
    return statistics.mean(turn[what] for turn in turns)


if __name__ == "__main__":
    main()
