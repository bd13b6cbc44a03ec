"""Sort the records of a bench: curves by contestant, step times by contestant and link.

Records are dicts, as `thinwire bench` writes them, a JSON line each, of one of these kinds:

environment  where and how it was measured
curve        validation losses of a contestant and seed, by steps
time         seconds of the steps of a contestant over a link, in one round
whole        one training run over a link from its first to its last step, against what the other
             two kinds predict of it
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thinwire.bench.records import curve_models, no_number
from thinwire.errors import ConfigError

TARGETS = (0.4, 0.6, 0.8, 1.0)  # of the baseline's steps
OURS, DENSE = "thinwire", "ddp"
SPLIT = ("compute", "encode", "exposed", "input")
NEEDS: dict[str, tuple[str, ...]] = {
    "environment": (),
    "curve": ("name", "contestant", "validation"),
    "time": ("name", "contestant", "link"),
    "whole": ("name", "link"),
}


@dataclass
class Curve:
    """Hold a contestant's validation loss over seeds: mean, least and greatest at `steps`."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    final: float
    spread: float | None
    """The standard deviation of the last losses; None of one seed."""
    seeds: int
    sent: list[float] | None
    """Bytes that a rank has sent at `steps`, where they were measured step by step."""

    def steps_to(self, target: float) -> float | None:
        """Return the steps until the mean is at the target or below, linear between validations.

        Example:
            >>> Curve([0, 10, 20], [4.0, 3.0, 2.0], [], [], 2.0, None, 1, None).steps_to(2.5)
            15.0
        """
        for at, loss in enumerate(self.mean):
            if loss <= target:
                if at == 0:
                    return float(self.steps[0])
                before, there = self.steps[at - 1], self.steps[at]
                return before + (there - before) * (self.mean[at - 1] - target) / (
                    self.mean[at - 1] - loss
                )
        return None

    def bytes_at(self, steps: Sequence[float], bytes_per_step: float | None) -> list[float] | None:
        """Return the bytes that a rank has sent by each of `steps`."""
        if self.sent is not None:
            return [float(each) for each in np.interp(steps, self.steps, self.sent)]
        return None if bytes_per_step is None else [step * bytes_per_step for step in steps]


@dataclass
class Timing:
    """Hold a contestant's steps over a link, of all rounds without an error."""

    rounds: int
    step_s: list[float]
    parts: dict[str, float]
    tokens_per_s: float | None
    metered: float | None
    kernel: float | None
    peak_bytes: float | None
    late_ms: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.step_s)


@dataclass
class Bench:
    """Hold the sorted records: names in the order of their first record, the fastest link first."""

    environments: list[Mapping[str, Any]] = field(default_factory=list)
    contestants: dict[str, str] = field(default_factory=dict)
    links: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    timings: dict[tuple[str, str], Timing] = field(default_factory=dict)
    setups: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """World and parameters of each link."""
    records: dict[tuple[str, str | None], list[Mapping[str, Any]]] = field(default_factory=dict)
    """Of a name and a link; of a name and None: its curves."""
    wholes: list[Mapping[str, Any]] = field(default_factory=list)
    errors: dict[tuple[str, str | None], list[str]] = field(default_factory=dict)
    baseline: str | None = None

    @property
    def fastest_first(self) -> list[str]:
        """Return the links, the highest rate first; of one rate the shortest round trip first."""
        return sorted(
            self.links,
            key=lambda link: (
                -(self.links[link].get("rate") or math.inf),
                self.links[link].get("rtt") or 0.0,
            ),
        )

    @property
    def targets(self) -> list[tuple[float, float]]:
        """Return (fraction of the baseline's steps, its loss there), the largest fraction last."""
        curve = self.curves.get(self.baseline or "")
        if curve is None:
            return []
        end = curve.steps[-1]
        return [
            (at, float(np.interp(at * end, curve.steps, curve.mean)))
            for at in TARGETS
            if at * end >= curve.steps[0]
        ]

    @property
    def chosen(self) -> int:
        """Return the index of the target that is shown first.

        It is the hardest that more than half of the contestants reach, else the easiest.
        """
        reached = [
            sum(curve.steps_to(nats) is not None for curve in self.curves.values())
            for _, nats in self.targets
        ]
        return max(
            (number for number, count in enumerate(reached) if 2 * count > len(self.curves)),
            default=0,
        )

    def bytes_per_step(self, name: str) -> float | None:
        """Return the bytes that a rank sends a step, on average over links.

        They are the kernel's count, else the library's, else those of its curves.
        """
        timings = [timing for (whose, _), timing in self.timings.items() if whose == name]
        for each in (
            [t.kernel for t in timings],
            [t.metered for t in timings],
            [c.get("bytes_per_step") for c in self.good(name)],
        ):
            if there := [value for value in each if value is not None]:
                return statistics.fmean(there)
        return None

    def good(self, name: str, link: str | None = None) -> list[Mapping[str, Any]]:
        """Return the records without an error."""
        return [record for record in self.records.get((name, link), []) if not _wrong(record)]


def sorted_out(records: Sequence[Mapping[str, Any]], baseline: str | None = None) -> Bench:
    """Sort the records into a `Bench`.

    Args:
        records: in any order.
        baseline: the name that others are held against; None: the first `ddp` without a hook.

    Raises:
        ConfigError: there is nothing to compare, or a record is none.
    """
    # 1. Check every record; set environments and whole runs aside.
    bench = Bench(baseline=baseline)
    for number, record in enumerate(records, start=1):
        _check(number, record)
        if record["kind"] == "environment":
            bench.environments.append(record)
        elif record["kind"] == "whole":
            bench.wholes.append(record)
    measured = [record for record in records if record["kind"] in ("curve", "time")]
    if not measured:
        raise ConfigError(
            "there is nothing to report: no record of a curve or of times; run `thinwire bench` "
            "first"
        )
    # 2. Curves of two models cannot be compared.
    if len(models := curve_models(measured)) > 1:
        raise ConfigError(
            f"the curves are of models of {' and '.join(map(str, sorted(models)))} parameters: "
            "make a page of each"
        )
    setups = _setups(measured)
    # 3. Sort by contestant and link, errors apart from figures.
    for record in measured:
        _keep(bench, record, setups)
    bench.links = {link: bench.links[link] for link in bench.fastest_first}
    # 4. Average what is good.
    for (name, link), some in bench.records.items():
        if good := [record for record in some if not _wrong(record)]:
            if link is None:
                bench.curves[name] = _curve(good)
            else:
                bench.timings[name, link] = _timing(good)
    if bench.baseline is None:
        dense = (
            r["name"]
            for r in measured
            if r["contestant"] == DENSE
            and (r.get("settings") or {}).get("hook", "none") in ("none", None)
        )
        bench.baseline = next(dense, None)
    return bench


def _check(number: int, record: Mapping[str, Any]) -> None:
    kind = record.get("kind")
    if kind not in NEEDS:
        raise ConfigError(f"record {number} is of kind {kind!r}; there are {', '.join(NEEDS)}")
    if missing := [
        key
        for key in NEEDS[kind]
        if record.get(key) is None and not (key == "validation" and record.get("error"))
    ]:
        raise ConfigError(f"record {number}, of kind {kind}, lacks {' and '.join(missing)}")
    if "link" in NEEDS[kind] and not (
        isinstance(record["link"], Mapping) and record["link"].get("name")
    ):
        raise ConfigError(f"record {number}, of kind {kind}, has a link without a name")


def _setups(records: Sequence[Mapping[str, Any]]) -> dict[str, set[tuple[int, int]]]:
    """Return the (world, parameters) that were timed over each link, by its name.

    Records of failures may lack them.
    """
    out: dict[str, set[tuple[int, int]]] = {}
    for record in records:
        if record["kind"] == "time":
            setups_of_link = out.setdefault(record["link"]["name"], set())
            if record.get("world") is not None and record.get("parameters") is not None:
                setups_of_link.add((record["world"], record["parameters"]))
    return out


def _keep(
    bench: Bench, record: Mapping[str, Any], setups: Mapping[str, set[tuple[int, int]]]
) -> None:
    """Add a curve or times to the bench."""
    name, link = record["name"], None
    # One name, one contestant: else two would be averaged.
    if bench.contestants.setdefault(name, record["contestant"]) != record["contestant"]:
        raise ConfigError(
            f"{name!r} is a name of {bench.contestants[name]} and of {record['contestant']}: give "
            "each its own"
        )
    if record["kind"] == "time":
        link = _label(record, setups[record["link"]["name"]])
        bench.links.setdefault(link, record["link"])
        world, parameters = bench.setups.get(link, (None, None))
        bench.setups[link] = (world or record.get("world"), parameters or record.get("parameters"))
    bench.records.setdefault((name, link), []).append(record)
    if wrong := _wrong(record):
        bench.errors.setdefault((name, link), []).append(f"{_which(record)}: {wrong}")


def _label(record: Mapping[str, Any], setups: set[tuple[int, int]]) -> str:
    """Return the page's name of a link, with ranks and model where several setups used it."""
    name = str(record["link"]["name"])
    if len(setups) < 2:
        return name
    world, parameters = record.get("world"), record.get("parameters")
    parts = [
        f"{world} ranks" if world is not None else "",
        f"{parameters / 1e6:,.3g} M parameters" if parameters is not None else "",
    ]
    return " · ".join([name, *filter(None, parts)])


def _which(record: Mapping[str, Any]) -> str:
    return (
        f"seed {record.get('seed', 0)}"
        if record["kind"] == "curve"
        else f"round {record.get('round', 0)}"
    )


def _wrong(record: Mapping[str, Any]) -> str:
    """Return why a record cannot be counted, or "" where it can."""
    if record.get("error"):
        return str(record["error"])
    if record["kind"] == "curve":
        if not record["validation"]:
            return "it was never validated"
        return no_number(record["validation"])
    steps = record.get("step_s") or []
    return (
        ""
        if steps and all(step is not None and 0 < step < math.inf for step in steps)
        else "no steps were timed"
    )


def _curve(records: Sequence[Mapping[str, Any]]) -> Curve:
    """Average the curves of seeds, linear between validations, over the steps that all cover."""
    # Only the steps that every seed covers; each is interpolated to all steps of any.
    seeds = [
        sorted((float(step), float(nats)) for step, nats in record["validation"])
        for record in records
    ]
    first, last = max(seed[0][0] for seed in seeds), min(seed[-1][0] for seed in seeds)
    steps = sorted({step for seed in seeds for step, _ in seed if first <= step <= last}) or [last]
    losses = np.array(
        [np.interp(steps, [step for step, _ in seed], [nats for _, nats in seed]) for seed in seeds]
    )  # (seeds, steps)
    ends = [seed[-1][1] for seed in seeds]
    sent = records[0].get("sent")
    return Curve(
        steps,
        losses.mean(0).tolist(),
        losses.min(0).tolist(),
        losses.max(0).tolist(),
        statistics.fmean(ends),
        statistics.stdev(ends) if len(ends) > 1 else None,
        len(seeds),
        None if sent is None else [float(each) for each in sent],
    )


def _timing(records: Sequence[Mapping[str, Any]]) -> Timing:
    """Join the rounds of one contestant over one link, weighted by the steps that each timed."""
    # Rounds weigh as many as the steps they timed; tokens a second weigh by seconds.
    counts = [len(record["step_s"]) for record in records]
    seconds = [math.fsum(record["step_s"]) for record in records]

    def mean(key: str, weights: Sequence[float] = counts) -> float | None:
        weighted = [
            (record[key], weight)
            for record, weight in zip(records, weights, strict=True)
            if record.get(key) is not None
        ]
        return (
            sum(value * weight for value, weight in weighted)
            / sum(weight for _, weight in weighted)
            if weighted
            else None
        )

    def most(key: str) -> float | None:
        return max((record[key] for record in records if record.get(key) is not None), default=None)

    parts = {part: mean(f"{part}_s") for part in SPLIT}
    return Timing(
        rounds=len(records),
        step_s=[step for record in records for step in record["step_s"]],
        parts={part: value for part, value in parts.items() if value is not None},
        tokens_per_s=mean("tokens_per_s", seconds),
        metered=mean("metered_bytes"),
        kernel=mean("kernel_bytes"),
        peak_bytes=most("peak_bytes"),
        late_ms=most("max_late_ms"),
    )
