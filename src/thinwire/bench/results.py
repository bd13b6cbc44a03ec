"""Records of a bench, sorted out: curves by contestant, step times by contestant and link.

Records are dicts, as `thinwire bench` writes them, a JSON line each; `kind` says what a record
tells:

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
    """A contestant's validation loss over seeds: mean, least and greatest at `steps`."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    final: float
    spread: float | None
    """The standard deviation of the last losses; None of one seed."""
    seeds: int
    sent: list[float] | None
    """Bytes that a rank has sent at `steps`, where that is known better than as an average."""

    def steps_to(self, target: float) -> float | None:
        """When the mean first is at the target or below it, read linearly between validations.

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
        """What a rank has sent by then."""
        if self.sent is not None:
            return [float(each) for each in np.interp(steps, self.steps, self.sent)]
        return None if bytes_per_step is None else [step * bytes_per_step for step in steps]


@dataclass
class Timing:
    """A contestant's steps over a link, of all rounds that went well."""

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
    """Records, sorted out. Names stand in the order in which they first came, links the fastest
    first."""

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
        """The links by their rate, those without a limit before; of one rate the shortest round
        trip first."""
        return sorted(
            self.links,
            key=lambda link: (
                -(self.links[link].get("rate") or math.inf),
                self.links[link].get("rtt") or 0.0,
            ),
        )

    @property
    def targets(self) -> list[tuple[float, float]]:
        """(share of the baseline's steps, the loss it has there), the largest share last."""
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
        """The place of the target that is shown first: the hardest that more than half of the
        contestants reach, else the easiest."""
        reached = [
            sum(curve.steps_to(nats) is not None for curve in self.curves.values())
            for _, nats in self.targets
        ]
        return max(
            (place for place, count in enumerate(reached) if 2 * count > len(self.curves)),
            default=0,
        )

    def bytes_per_step(self, name: str) -> float | None:
        """What a rank sends, on average over links: as the kernel counted, else as metered, else as
        its curves say."""
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
        """The records without an error."""
        return [record for record in self.records.get((name, link), []) if not _wrong(record)]


def sorted_out(records: Sequence[Mapping[str, Any]], baseline: str | None = None) -> Bench:
    """The records as a `Bench`.

    Args:
        records: in any order.
        baseline: the name that others are held against; None: the first `ddp` without a hook.

    Raises:
        ConfigError: there is nothing to compare, or a record is none.
    """
    bench = Bench(baseline=baseline)
    for place, record in enumerate(records, start=1):
        _check(place, record)
        if record["kind"] == "environment":
            bench.environments.append(record)
        elif record["kind"] == "whole":
            bench.wholes.append(record)
    told = [record for record in records if record["kind"] in ("curve", "time")]
    if not told:
        raise ConfigError(
            "there is nothing to report: no record of a curve or of times; run `thinwire bench` "
            "first"
        )
    if len(models := curve_models(told)) > 1:
        raise ConfigError(
            f"the curves are of models of {' and '.join(map(str, sorted(models)))} parameters: "
            "make a page of each"
        )
    setups = _setups(told)
    for record in told:
        _keep(bench, record, setups)
    bench.links = {link: bench.links[link] for link in bench.fastest_first}
    for (name, link), some in bench.records.items():
        if good := [record for record in some if not _wrong(record)]:
            if link is None:
                bench.curves[name] = _curve(good)
            else:
                bench.timings[name, link] = _timing(good)
    if bench.baseline is None:
        dense = (
            r["name"]
            for r in told
            if r["contestant"] == DENSE
            and (r.get("settings") or {}).get("hook", "none") in ("none", None)
        )
        bench.baseline = next(dense, None)
    return bench


def _check(place: int, record: Mapping[str, Any]) -> None:
    kind = record.get("kind")
    if kind not in NEEDS:
        raise ConfigError(f"record {place} is of kind {kind!r}; there are {', '.join(NEEDS)}")
    if missing := [
        key
        for key in NEEDS[kind]
        if record.get(key) is None and not (key == "validation" and record.get("error"))
    ]:
        raise ConfigError(f"record {place}, of kind {kind}, lacks {' and '.join(missing)}")
    if "link" in NEEDS[kind] and not (
        isinstance(record["link"], Mapping) and record["link"].get("name")
    ):
        raise ConfigError(f"record {place}, of kind {kind}, has a link without a name")


def _setups(records: Sequence[Mapping[str, Any]]) -> dict[str, set[tuple[int, int]]]:
    """Of each link's name the worlds and models that were timed over it; failures may not know
    theirs."""
    out: dict[str, set[tuple[int, int]]] = {}
    for record in records:
        if record["kind"] == "time":
            known = out.setdefault(record["link"]["name"], set())
            if record.get("world") is not None and record.get("parameters") is not None:
                known.add((record["world"], record["parameters"]))
    return out


def _keep(
    bench: Bench, record: Mapping[str, Any], setups: Mapping[str, set[tuple[int, int]]]
) -> None:
    """Put a curve or times where they belong."""
    name, link = record["name"], None
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
    """What the page calls a link: its name, and of which ranks and model where it was used by
    several."""
    name = str(record["link"]["name"])
    if len(setups) < 2:
        return name
    world, parameters = record.get("world"), record.get("parameters")
    told = [
        f"{world} ranks" if world is not None else "",
        f"{parameters / 1e6:,.3g} M parameters" if parameters is not None else "",
    ]
    return " · ".join([name, *filter(None, told)])


def _which(record: Mapping[str, Any]) -> str:
    return (
        f"seed {record.get('seed', 0)}"
        if record["kind"] == "curve"
        else f"round {record.get('round', 0)}"
    )


def _wrong(record: Mapping[str, Any]) -> str:
    """Why a record cannot be counted; nothing where it can."""
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
    """Seeds that were validated at different steps are read linearly, where all of them were
    there."""
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
    """Rounds weigh as many steps as they timed."""
    counts = [len(record["step_s"]) for record in records]
    seconds = [math.fsum(record["step_s"]) for record in records]

    def mean(key: str, weights: Sequence[float] = counts) -> float | None:
        known = [
            (record[key], weight)
            for record, weight in zip(records, weights, strict=True)
            if record.get(key) is not None
        ]
        return (
            sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
            if known
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
