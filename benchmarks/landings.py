"""What a late landing costs: rounds of 10 local steps that land on time, late, and eagerly, by the
bench's curve cut at half its schedule.

    python -m benchmarks.landings             # run what results/landings lacks; 2 minutes a row
    python -m benchmarks.landings --table     # print the table of the records that are there

The curves of results/bench at the same step stand beside them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.common import parser, table
from thinwire.bench.contestants import DDP, OUTER_10, TWO_BITS, ours
from thinwire.bench.records import RECORDS, read
from thinwire.bench.studies import STUDY
from thinwire.bench.study import Bench
from thinwire.core import Codec
from thinwire.data.cache import cache_folder
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.strategy import Strategy
from thinwire.what import uniform
from thinwire.when import delayed, every

RESULTS = Path(__file__).parent / "results"
HALF = STUDY.curve["steps"] // 2
BESIDE = (
    DDP,
    "DiLoCo H=10, 4 bits",
    "DiLoCo H=10, 2 bits, feedback",
    "eager streaming DiLoCo H=10, 2 bits",
    "torchft streaming DiLoCo H=10",
)


def late(tau: int, what: Codec, alpha: float = 0.0, eager: bool = False) -> Strategy:
    """A round every 10 steps, so many steps late."""
    return Strategy(
        delayed(tau, every(10)), what, two_shot(), deltas(outer=OUTER_10, alpha=alpha, eager=eager)
    )


LATE = {
    "4 bits, 1 late": late(1, uniform(4)),
    "4 bits, 2 late, alpha 0.5": late(2, uniform(4), alpha=0.5),
    "4 bits, 1 late, eager": late(1, uniform(4), eager=True),
    **{
        f"2 bits, feedback, {tau} late, eager": late(tau, TWO_BITS, eager=True) for tau in (1, 2, 4)
    },
}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--table", action="store_true", help="run nothing, tell what the records say")
    options = made.parse_args()
    if not options.table:
        taken = tuple(ours(name, strategy, 10) for name, strategy in LATE.items())
        study = replace(STUDY, contestants=taken, seeds=1, curve={**STUDY.curve, "stop": HALF})
        Bench(study, RESULTS / "landings", cache_folder() / "rivals", print).run(
            "benchmarks.landings", ("curves",)
        )
    curves = [
        record
        for name in ("bench", "landings")
        for record in read(RESULTS / name / RECORDS)
        if record["kind"] == "curve" and record["seed"] == 0 and not record["error"]
    ]
    losses = {record["name"]: dict(record["validation"])[HALF] for record in curves}
    table(
        ("run", f"nats at step {HALF}"),
        [(name, losses[name]) for name in (*BESIDE, *LATE) if name in losses],
    )


if __name__ == "__main__":
    main()
