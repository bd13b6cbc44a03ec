"""Whether the avoidance family trains as its papers say: a study of small runs that goes on where
it stopped.

    python -m benchmarks.evidence             # run what results/evidence lacks, seed by seed; hours
    python -m benchmarks.evidence --confirm   # two runs of a model four times as large; 1 h each
    python -m benchmarks.evidence --claims    # check the claims on the records that are there

A GPT of 0.48 M parameters on the bundled text, 9.8 M tokens (20 to a parameter), the same tokens a
step whatever the number of replicas: 32 rows of 128 bytes over K. AdamW 3e-3 inside, cosine. Claims
are of the last validation, in nats, means over the seeds that all runs of a claim have; one that
holds of the means and not of every seed is told as that. Three runs are contestants of the bench,
whose curves are in results/bench: data parallelism (its dense baseline), 4-bit deltas every 30
steps, and 2-bit deltas with feedback every 10. Confirmed by a GPT of 2.0 M parameters on 40 M
tokens, data parallel and in 4 replicas, one seed. What fragments send, and that a link's rate
changes no bit of a loss, is claimed of short runs on emulated links.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import parser
from thinwire.bench.contestants import DENSE, OUTER_10, Contestant, averaged, ours
from thinwire.bench.networks import swept
from thinwire.bench.records import RECORDS, read
from thinwire.bench.studies import STUDY, Study
from thinwire.bench.study import Bench
from thinwire.data.cache import cache_folder
from thinwire.how import two_shot
from thinwire.on import gradients, nesterov
from thinwire.strategy import Strategy
from thinwire.what import identity, uniform
from thinwire.when import every

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "evidence"
ROWS, SEEDS = 32, 3
WORLDS = (1, 2, 4, 8)
RATES = (0.5, 0.9, 1.3)
BEST = 0.9
MOMENTUM = 0.6  # papers take 0.9, over thousands of rounds; here there are 80
NETWORKS = swept(STUDY.world, (1e8, 1e9), (0.0,))
LARGER = {"vocab": 256, "context": 128, "layers": 5, "heads": 6, "width": 180}  # 2.0 M parameters
LARGER_STEPS = 9840  # 20 tokens to a parameter
PARALLEL = "data parallel"
OF_BENCH = {
    DENSE: PARALLEL,
    "DiLoCo H=30, 4 bits": "4 bits",
    "DiLoCo H=10, 2 bits, feedback": "2 bits, H=10, feedback",
}
"""Contestants whose curves are taken, and what they are called here."""


def local(rate: float, period: int = 30, what: Any = None, fragments: int = 0) -> Strategy:
    """Rounds of local steps under Nesterov's momentum."""
    return averaged(period, nesterov(rate, MOMENTUM), fragments, what=what or identity())


def many(world: int) -> str:
    """So many of them."""
    return "1 replica" if world == 1 else f"{world} replicas"


def replicas(world: int, rate: float) -> str:
    """The name of a run."""
    return f"{many(world)}, rate {rate}"


def runs() -> dict[int, list[Contestant]]:
    """By world: what is run."""
    made = {
        world: [ours(replicas(world, rate), local(rate), 30) for rate in RATES] for world in WORLDS
    }
    made[4] += [ours(f"H={period}", local(BEST, period), period) for period in (1, 10, 100)]
    made[4].append(ours("2 bits, H=10", averaged(10, OUTER_10, what=uniform(2, grid="rise")), 10))
    cut = local(BEST, fragments=3)
    made[4].append(ours("3 fragments", cut, 30))
    made[4].append(ours("3 fragments, alpha 0", replace(cut, on=replace(cut.on, alpha=0.0)), 30))
    return made


CONFIRMED = f"2 M, {PARALLEL}", "2 M, 4 replicas, 4 bits"


NAMES = tuple(
    dict.fromkeys(
        (
            PARALLEL,
            *(run.name for some in runs().values() for run in some),
            *OF_BENCH.values(),
            *CONFIRMED,
        )
    )
)
"""Of all runs, in the order of the page."""


def confirmation() -> Study:
    """Data parallelism and DiLoCo, larger and longer."""
    dense = Strategy(every(1), identity(), two_shot(), gradients())
    taken = (ours(CONFIRMED[0], dense), ours(CONFIRMED[1], local(BEST, what=uniform(4)), 30))
    curve = {
        **STUDY.curve,
        "model": LARGER,
        "steps": LARGER_STEPS,
        "stop": LARGER_STEPS,
        "validate_every": LARGER_STEPS // 20,
    }
    return replace(STUDY, contestants=taken, seeds=1, curve=curve)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and whether the means over seeds say so, too."""

    said: str
    runs: tuple[str, ...]
    holds: Callable[..., bool]


CLAIMS = (
    Claim(
        "data parallel <= 2 < 4 < 8 replicas, each at its best rate of three",
        (PARALLEL, "2 replicas", "4 replicas", "8 replicas"),
        lambda one, two, four, eight: one <= two * 1.002 and two < four < eight,
    ),
    Claim(
        "1 < 2 < 4 < 8 replicas, all under the outer optimiser, each at its best rate of three",
        tuple(many(world) for world in WORLDS),
        lambda one, two, four, eight: one < two < four < eight,
    ),
    Claim(
        "2, 4, 8 replicas stand at most 3, 6, 12 % above",
        (PARALLEL, "2 replicas", "4 replicas", "8 replicas"),
        lambda one, *more: all(
            loss <= one * (1 + most) for loss, most in zip(more, (0.03, 0.06, 0.12), strict=True)
        ),
    ),
    Claim(
        "under an outer momentum H=1 is the worst period",
        ("H=1", "H=10", replicas(4, BEST), "H=100"),
        lambda first, *others: first > max(others),
    ),
    Claim(
        "and worse than H=10 and H=30, which talk 80 times and more",
        ("H=1", "H=10", replicas(4, BEST)),
        lambda first, *others: first > max(others),
    ),
    Claim(
        "4-bit deltas are as good as float32's, to 0.5 %",
        (replicas(4, BEST), "4 bits"),
        lambda whole, four: four <= 1.005 * whole,
    ),
    Claim(
        "2-bit deltas need feedback",
        ("2 bits, H=10, feedback", "2 bits, H=10"),
        lambda kept, lost: kept < lost,
    ),
    Claim(
        "3 fragments, one step late, merged by halves, train as well, to 1 %",
        (replicas(4, BEST), "3 fragments"),
        lambda whole, cut: cut <= 1.01 * whole,
    ),
    Claim(
        "the same of what is overwritten at its landing (alpha 0)",
        (replicas(4, BEST), "3 fragments, alpha 0"),
        lambda whole, cut: cut <= 1.01 * whole,
    ),
    Claim(
        "the gap of 4 replicas is smaller at 2.0 M parameters",
        (PARALLEL, "4 bits", *CONFIRMED),
        lambda one, four, larger_one, larger_four: larger_four / larger_one < four / one,
    ),
)


BURSTS = replicas(4, BEST), "3 fragments"
NEAR = 0.02

Losses = dict[str, dict[int, float]]
"""The last loss of each run, by seed."""


def by_seed(losses: Losses, names: Sequence[str]) -> list[list[float]]:
    """Of these runs, a row for every seed that all of them have."""
    found = [losses.get(name, {}) for name in names]
    return [[each[seed] for each in found] for seed in sorted(set.intersection(*map(set, found)))]


def means(losses: Losses, names: Sequence[str]) -> list[float]:
    """Of these runs, over the seeds that all of them have; nothing where there is none."""
    return [statistics.mean(each) for each in zip(*by_seed(losses, names), strict=True)]


def best(losses: Losses, world: int) -> float | None:
    """The outer rate with the least mean loss, once every rate has been run."""
    found = means(losses, [replicas(world, rate) for rate in RATES])
    return RATES[found.index(min(found))] if found else None


def between(low: float, middle: float, high: float) -> float:
    """Where a parabola through the losses of the three rates is least, among them or at an end."""
    if (bend := low + high - 2 * middle) <= 0:
        return RATES[0] if low < high else RATES[-1]
    return min(max(RATES[1] + (RATES[1] - RATES[0]) / 2 * (low - high) / bend, RATES[0]), RATES[-1])


def known(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, and the curves that the bench has run."""
    shared = [
        each
        for each in read(RESULTS / "bench" / RECORDS)
        if each["kind"] == "curve" and each["name"] in OF_BENCH
    ]
    return [*read(folder / RECORDS), *({**each, "name": OF_BENCH[each["name"]]} for each in shared)]


def told(records: Sequence[dict[str, Any]]) -> Losses:
    """What came of each run, and of each number of replicas at its best rate."""
    losses: Losses = {}
    for record in records:
        if record.get("kind") == "curve" and not record["error"]:
            losses.setdefault(record["name"], {})[record["seed"]] = record["validation"][-1][1]
    for world in WORLDS:
        if (rate := best(losses, world)) is not None:
            losses[many(world)] = losses[replicas(world, rate)]
    return losses


def word(holds: bool | None) -> str:
    """What a table says of a claim."""
    return "–" if holds is None else "yes" if holds else "no"


def judged(
    losses: Losses, names: Sequence[str], holds: Callable[..., bool]
) -> tuple[list[float], str]:
    """The means of these runs, and what a table says of a claim of them: in how many seeds, where
    it holds of the means and not of all."""
    found, seeds = means(losses, names), [holds(*each) for each in by_seed(losses, names)]
    if found and holds(*found) and not all(seeds):
        return found, f"of the mean, {sum(seeds)} of {len(seeds)} seeds"
    return found, word(holds(*found) if found else None)


def best_rates(*found: float) -> list[float]:
    """By world, of the losses of every world's rates in a row."""
    return [between(*found[at : at + len(RATES)]) for at in range(0, len(found), len(RATES))]


def rise(*found: float) -> bool:
    """Whether they do, never falling between."""
    rates = best_rates(*found)
    return rates == sorted(rates) and rates[0] < rates[-1]


def claims(records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of a table: the claim, what was found, whether it holds."""
    losses, rows = told(records), []
    for claim in CLAIMS:
        found, held = judged(losses, claim.runs, claim.holds)
        words = (
            ", ".join(f"{name} {mean:.4f}" for name, mean in zip(claim.runs, found, strict=False))
            or "–"
        )
        rows.append((claim.said, words, held))
    found, held = judged(
        losses, [replicas(world, rate) for world in WORLDS for rate in RATES], rise
    )
    words = ", ".join(f"{rate:.2f}" for rate in best_rates(*found)) or "–"
    rows.append(("the best outer rate, between those run, rises with replicas", words, held))
    short = [record for record in records if record.get("kind") == "whole" and not record["error"]]
    pair = {record["name"]: record for record in short if record["name"] in BURSTS}
    for said, figure, expected in (
        ("3 fragments send as many bytes", "bytes_per_step", 1),
        ("and a third at most in a step", "burst_bytes", 1 / 3),
    ):
        part = [pair[name][figure] for name in BURSTS if name in pair]
        near = abs(part[1] / part[0] / expected - 1) < NEAR if len(part) == len(BURSTS) else None
        rows.append(
            (
                f"{said}, to {100 * NEAR:.0f} %",
                "–" if near is None else f"{part[1]:,.0f} of {part[0]:,.0f}",
                word(near),
            )
        )
    ends = {record["link"]["name"]: record for record in short if record["name"] == "4 bits"}
    same = {(record["last_losses"], str(record["validation"])) for record in ends.values()}
    words = ", ".join(f"{link} {record['last_losses']}" for link, record in ends.items())
    rows.append(
        (
            "the link's rate changes no bit of the loss",
            words or "–",
            word(len(same) == 1 if len(ends) == len(NETWORKS) else None),
        )
    )
    return rows


def on_links(folder: Path) -> None:
    """The same three rounds on each link; on the last, where a fragment is there within a step,
    what goes at once and what in fragments."""
    same = ours("4 bits", local(BEST, what=uniform(4)), 30)
    some = [each for each in runs()[4] if each.name in BURSTS]
    short = replace(STUDY, curve={**STUDY.curve, "stop": 95, "validate_every": 95})
    for network in NETWORKS:
        with network.lab() as lab:
            bench = Bench(short, folder, cache_folder() / "rivals", print)
            for contestant in [same, *(some if network is NETWORKS[-1] else ())]:
                bench.whole(contestant, network, lab)


def main() -> None:
    made = parser(__doc__)
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--claims", action="store_true", help="run nothing, tell what the records say"
    )
    which.add_argument(
        "--confirm", action="store_true", help="the larger model's runs, and no others"
    )
    made.add_argument("--folder", type=Path, default=FOLDER)
    made.add_argument(
        "--seeds", type=int, default=SEEDS, help="of the small runs; a confirmation has one"
    )
    options = made.parse_args()
    if options.confirm:
        Bench(confirmation(), options.folder, cache_folder() / "rivals", print).run(
            "benchmarks.evidence --confirm", ("curves",)
        )
    elif not options.claims:
        on_links(options.folder)
        for seeds in range(1, options.seeds + 1):
            for world, contestants in runs().items():
                Bench(
                    study(world, contestants, seeds),
                    options.folder,
                    cache_folder() / "rivals",
                    print,
                ).run("benchmarks.evidence", ("curves",))
    print("\n".join(lines(known(options.folder))))


def lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """The tables of docs/evidence.md and results/evidence.md."""
    losses = told(records)
    ends = [
        f"| {name} | {' '.join(f'{losses[name][seed]:.4f}' for seed in sorted(losses[name]))} |"
        for name in NAMES
        if name in losses
    ]
    found = [f"| {' | '.join(row)} |" for row in claims(records)]
    return [
        "| run | last loss, by seed |",
        "|---|---|",
        *ends,
        "",
        "| claim | found | holds |",
        "|---|---|---|",
        *found,
    ]


def study(world: int, contestants: list[Contestant], seeds: int) -> Study:
    """The bench's curves, for these runs."""
    curve = {**STUDY.curve, "batch": ROWS // world}
    return replace(STUDY, world=world, contestants=tuple(contestants), seeds=seeds, curve=curve)


if __name__ == "__main__":
    main()
