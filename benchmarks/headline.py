"""Seconds until the loss that dense DDP has at its end, on six links, beside an infinitely fast
wire and the best rival.

    python -m benchmarks.headline             # run what results/headline lacks, then print; hours
    python -m benchmarks.headline --table     # print the table of the records that are there
    python -m benchmarks.headline --table --of-seeds 3    # only contestants with 3 seeds a curve

A contestant's seconds are the steps that its curve needs × its mean step on the link. Curves and
times of `thinwire bench` are taken as they are (results/bench); added here are curves that go on
for longer: who talks seldom may take more steps in less time, rivals included. Infinitely fast:
DDP's steps to the same target × a step of the same model, ranks and machine of which nothing is
said at all; timed on the link, in turn with the others, where its steps are of another machine than
the rest. The target is DDP's mean last loss, and 0.2 % above it counts as there: so much do runs of
the same maths differ by the order of their sums.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import parser, table
from thinwire.bench.contestants import (
    DDP,
    FULL,
    OURS,
    SLICES,
    TWO_BITS,
    Contestant,
    chosen,
    ours,
    sliced,
)
from thinwire.bench.networks import NO_LIMITS, no_limits, swept
from thinwire.bench.records import RECORDS, for_page, read
from thinwire.bench.results import sorted_out
from thinwire.bench.studies import STUDY
from thinwire.bench.study import SAME, Bench
from thinwire.data.cache import cache_folder
from thinwire.how import native, two_shot
from thinwire.on import deltas, gradients, sgd
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, uniform
from thinwire.when import delayed, every

RESULTS = Path(__file__).parent / "results"
LONGER = ["DiLoCo H=30, 4 bits", "torchft DiLoCo H=30", "DDP, PowerSGD rank 4"]
"""Of these, schedules of twice as many steps as the bench's, too."""
LONG = ", more steps"


def said(bits: int, late: int) -> Strategy:
    """Gradients in so many bits with feedback, each step, landing so many steps late."""
    when = delayed(late, every(1)) if late else every(1)
    what = feedback(uniform(4)) if bits == 4 else TWO_BITS
    return Strategy(when, what, two_shot(), gradients())


MORE = tuple(
    ours(
        f"{bits}-bit gradients, feedback" + (", a step late" if late else ""),
        said(bits, late),
        attach=SLICES,
        timed=sliced(16),
        slow=sliced(8, bucket_bytes=8 << 20),
    )
    for bits, late in ((2, 0), (2, 1), (4, 1))
)
ALONE_STEPS = 60
MINUTES = ("link", "no network", "ours", "best rival", "DDP", "× the best rival", "× DDP")
TIMED_APART = swept(STUDY.world, (1e7,), (0.0, 0.05))
"""Links on which a step takes up to a second here were timed on a slower machine than the
others."""
ALONE = ours(
    "nothing said", Strategy(every(1_000_000), identity(), native(), deltas(outer=sgd(1.0)))
)


def longer(contestant: Contestant) -> Contestant:
    """With a schedule of twice as many steps."""
    steps = 2 * STUDY.curve["steps"]
    return replace(contestant, job={**contestant.job, "steps": steps, "stop": steps}, same_as=None)


def run(folder: Path, seeds: int) -> None:
    """Whatever is missing: a step alone, times of what the bench has not, longer curves."""
    whole = replace(STUDY, seeds=seeds)
    made = [
        (
            replace(
                whole,
                contestants=(ALONE,),
                networks=(no_limits(whole.world), *TIMED_APART),
                timed=ALONE_STEPS,
            ),
            "times",
        ),
        (replace(whole, contestants=MORE), "times"),
        (replace(whole, contestants=(*MORE, *map(longer, chosen(LONGER, FULL)))), "curves"),
    ]
    for study, part in made:
        Bench(study, folder, cache_folder() / "rivals", print).run("benchmarks.headline", (part,))


@dataclass
class Found:
    """Of one link: seconds of the infinitely fast wire; the best of ours and of the rivals, with
    their names; DDP's."""

    link: str
    infinite: float
    ours: tuple[float, str] | None
    rival: tuple[float, str] | None
    ddp: float | None

    @property
    def row(self) -> tuple[str, ...]:
        """The link; ours, and over no wire; the best rival, and over no wire; rival over ours; DDP;
        DDP over ours."""
        cells = [self.link]
        for each in (self.ours, self.rival):
            cells += (
                [f"{each[1]}: {each[0]:,.0f} s", f"{each[0] / self.infinite:.2f}"]
                if each
                else ["–", "–"]
            )
        return (
            *cells,
            self.over(self.rival and self.rival[0]),
            f"{self.ddp:,.0f} s" if self.ddp else "–",
            self.over(self.ddp),
        )

    @property
    def minutes(self) -> tuple[str, ...]:
        """The link; minutes of no wire, ours, the best rival and DDP; how many times as fast as
        each of these two ours is."""
        named = [
            f"{minutes(each[0])}, {each[1]}" if each else "–" for each in (self.ours, self.rival)
        ]
        margins = (self.over(self.rival and self.rival[0]), self.over(self.ddp))
        link = self.link.removesuffix(", 0 ms")
        return (
            link,
            minutes(self.infinite),
            *named,
            minutes(self.ddp) if self.ddp else "–",
            *margins,
        )

    def over(self, seconds: float | None) -> str:
        """Return how many times longer than ours so many seconds are."""
        return f"{seconds / self.ours[0]:.2f}" if self.ours and seconds else "–"


def minutes(seconds: float) -> str:
    """Return seconds in minutes, to three digits.

    Example:
        >>> minutes(1206.6), minutes(149_098)
        ('20.1', '2,485')
    """
    return f"{seconds / 60:,.1f}" if seconds < 6000 else f"{seconds / 60:,.0f}"


def found(records: list[dict[str, Any]], seeds: int = 1) -> list[Found]:
    """A row for each link that was timed; curves of contestants with fewer seeds are left out."""
    marked = [_marked(record) for record in records]
    have = Counter(
        record["name"] for record in marked if record["kind"] == "curve" and not record["error"]
    )
    if have[DDP] < seeds:
        raise SystemExit(
            f"the curve of {DDP} has {have[DDP]} seeds, not {seeds}: run `thinwire bench` first"
        )
    bench = sorted_out(
        for_page(
            [
                record
                for record in marked
                if record["kind"] != "curve" or have[record["name"]] >= seeds
            ]
        )
    )
    dense = bench.curves[DDP]
    target = dense.final * (1 + SAME)
    to_target = dense.steps_to(target)
    assert to_target is not None  # its own last loss, and more
    rows = []
    for link in bench.fastest_first:
        if link == NO_LIMITS:
            continue
        seconds: dict[str, float] = {}
        for (name, where), timing in bench.timings.items():
            curves = [bench.curves[each] for each in (name, name + LONG) if each in bench.curves]
            steps = [needed for curve in curves if (needed := curve.steps_to(target)) is not None]
            if where == link and steps:
                seconds[name] = min(steps) * timing.mean
        ours, rival = (
            min(
                (
                    (took, name)
                    for name, took in seconds.items()
                    if (bench.contestants[name] == OURS) is mine
                ),
                default=None,
            )
            for mine in (True, False)
        )
        rows.append(Found(link, to_target * alone(records, link), ours, rival, seconds.get(DDP)))
    return rows


def models(records: list[dict[str, Any]]) -> str:
    """Say of which models the steps and the step times are: they are not the same."""
    sizes = {
        kind: {record["parameters"] for record in records if record["kind"] == kind}
        for kind in ("curve", "time")
    }
    small, large = (
        " and ".join(f"{size / 1e6:.3g} M" for size in sorted(sizes[kind]))
        for kind in ("curve", "time")
    )
    return (
        f"steps that a model of {small} parameters needs × seconds that a step of one of {large} "
        "takes"
    )


def alone(records: list[dict[str, Any]], link: str) -> float:
    """A step of which nothing is said, in seconds, of the rank that is done last: as timed on a
    link, else without limits.

    Where ranks share cores, those behind are quicker once another is done, so that the mean of
    ranks would be too short.
    """
    took = [
        (record["link"]["name"], record["slowest_s"])
        for record in records
        if record.get("name") == ALONE.name and not record["error"]
    ]
    here = [seconds for where, seconds in took if where == link] or [
        seconds for where, seconds in took if where == NO_LIMITS
    ]
    if not here:
        raise SystemExit(
            "no step without a wire is known yet: run `python -m benchmarks.headline` first"
        )
    return statistics.mean(here)


def _marked(record: dict[str, Any]) -> dict[str, Any]:
    """A curve of more steps has a name of its own: each schedule is another curve."""
    long = (
        record["kind"] == "curve" and not record["error"] and record["steps"] > STUDY.curve["steps"]
    )
    return {**record, "name": record["name"] + LONG} if long else record


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--table", action="store_true", help="run nothing, tell what the records say")
    made.add_argument("--seeds", type=int, default=STUDY.seeds, help="to run")
    made.add_argument(
        "--of-seeds",
        type=int,
        default=1,
        help="leave out contestants whose curves have fewer; all have the first",
    )
    options = made.parse_args()
    if not options.table:
        run(RESULTS / "headline", options.seeds)
    records = [
        record for name in ("bench", "headline") for record in read(RESULTS / name / RECORDS)
    ]
    rows = found(records, options.of_seeds)
    table(
        (
            "link",
            "ours",
            "over no wire",
            "best rival",
            "over no wire",
            "rival over ours",
            "DDP",
            "DDP over ours",
        ),
        [each.row for each in rows],
    )
    for each in rows:
        print(
            f"{each.link}: without any wire DDP would take {each.infinite:,.0f} s, at "
            f"{alone(records, each.link):.3f} s a step"
        )
    print()
    print(f"in minutes, for the README: {models(records)}")
    table(MINUTES, [each.minutes for each in rows])
    over = [each.ours[0] / each.infinite for each in rows if each.ours]
    if over:
        print(
            f"ours over an infinitely fast wire: {min(over):.2f} to {max(over):.2f}, median "
            f"{statistics.median(over):.2f}"
        )


if __name__ == "__main__":
    main()
