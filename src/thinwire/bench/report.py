"""Report a bench: which contestant reaches a loss first, on which link, as data and as one page.

The time to a loss is the steps that the curve, averaged over seeds, needs to get there, times the
mean step on the link. Targets are the losses that the dense baseline has reached at some shares of
its steps. Records: `thinwire.bench.results`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinwire.bench.results import OURS, Bench, Timing, sorted_out
from thinwire.errors import ConfigError


def rows(bench: Bench) -> list[dict[str, Any]]:
    """Return the rows of a bench; see `summary`."""
    out = []
    # 1. A row for each contestant on each link; a curve without any times stands alone.
    for link in [*bench.links, None]:
        for name in bench.contestants:
            if (name, link) in bench.records and (
                link is not None or not any((name, each) in bench.records for each in bench.links)
            ):
                out.append(_row(bench, name, link))
    # 2. Winners and speed-ups, link by link and target by target.
    for link in bench.links:
        here = [row for row in out if row["link"] == link]
        base = next((row for row in here if row["name"] == bench.baseline), None)
        for index in range(len(bench.targets)):
            times = [row["targets"][index]["s"] for row in here]
            best = min((time for time in times if time is not None), default=None)
            for row, time in zip(here, times, strict=True):
                row["targets"][index]["winner"] = time is not None and time == best
                against = base["targets"][index]["s"] if base else None
                row["targets"][index]["speedup"] = against / time if against and time else None
    # 3. The chosen target's figures as the row's own; then sort by link and time.
    for row in out:
        shown = row["targets"][bench.chosen] if row["targets"] else {}
        row.update(
            {key: shown.get(other) for key, other in CHOSEN.items()},
            winner=bool(shown.get("winner")),
        )
    order = {link: index for index, link in enumerate([*bench.links, None])}
    return sorted(
        out,
        key=lambda row: (
            order[row["link"]],
            math.inf if row["time_to_target_s"] is None else row["time_to_target_s"],
        ),
    )


CHOSEN = {
    "target_nats": "nats",
    "steps_to_target": "steps",
    "time_to_target_s": "s",
    "bytes_to_target": "bytes",
    "speedup": "speedup",
}


def summary(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the table, a dict for each link and contestant.

    Each link's quickest to the target comes first.

    Args:
        records: see this module; in any order.

    Returns:
        Of each row: link (None where it was not timed), name, contestant, kind, world, parameters,
        rounds, timed_steps, step_median_s, step_p10_s, step_p90_s, step_mean_s, tokens_per_s,
        bytes_per_step, fewer_bytes (dense ones over its own), final_nats, final_spread, seeds, gap
        (to the dense final loss), target_nats, steps_to_target, time_to_target_s, bytes_to_target,
        speedup (over the dense baseline on that link), winner, targets (the last six for each
        target), peak_bytes, max_late_ms, kernel_over_meter, parts (seconds a step) and errors. A
        figure that was not measured is None.

    Raises:
        ConfigError: there is nothing to report, or a record is none.
    """
    return rows(sorted_out(records))


def bench_page(records: Sequence[Mapping[str, Any]]) -> str:
    """Write one HTML page of a bench, which needs no other file.

    Args:
        records: see this module; in any order.

    Raises:
        ConfigError: there is nothing to report, a record is none, or matplotlib is not installed.
    """
    from thinwire.bench.sections import bench_sections

    bench = sorted_out(records)
    return bench_sections(bench, rows(bench))


@dataclass(frozen=True)
class FinishedRun:
    """Hold a finished run of `thinwire train`.

    Args:
        path: its folder, or the run.json in it.
        record: what its run.json holds.
        sent_megabytes: what a rank, on average, has sent by the end of each step.
    """

    path: Path
    record: Mapping[str, Any]
    sent_megabytes: Sequence[float]


def runs_page(runs: Sequence[FinishedRun], differ: Mapping[str, Sequence[Any]]) -> str:
    """Write one HTML page of finished runs; the others are compared with the first.

    Args:
        runs: at least one.
        differ: settings that should be alike in all runs and are not, with each run's own.

    Raises:
        ConfigError: there are none, or matplotlib is not installed.
    """
    if not runs:
        raise ConfigError("there is nothing to report: give the --out of one or more finished runs")
    from thinwire.bench.sections import runs_sections

    names = _names([run.path for run in runs], [run.record for run in runs])
    by_name = dict(zip(names, runs, strict=True))
    records = [record for name, run in by_name.items() for record in _records(name, run)]
    bench = sorted_out(records, baseline=names[0])
    table = rows(bench)
    for row in table:
        row["fewer_bytes"] = by_name[row["name"]].record["result"]["ratio"]
    return runs_sections(bench, table, {name: run.record for name, run in by_name.items()}, differ)


def write(page: str, path: Path) -> Path:
    """Put a page into a file, whole or not at all.

    Raises:
        ConfigError: it cannot be written there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            partial.write_text(page, encoding="utf-8", newline="\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the page cannot be written to {str(path)!r}: {error.strerror}"
        ) from error
    return path


def _row(bench: Bench, name: str, link: str | None) -> dict[str, Any]:
    curve, timing = bench.curves.get(name), bench.timings.get((name, link or ""))
    dense = bench.curves.get(bench.baseline or "")
    world, parameters = bench.setups.get(link or "", (None, None))
    # Bytes by the kernel's count if there is one, else by our meter, else as the curve has them.
    middle = np.percentile(timing.step_s, (10, 50, 90)).tolist() if timing else [None] * 3
    sends = (
        bench.bytes_per_step(name)
        if timing is None
        else timing.metered
        if timing.kernel is None
        else timing.kernel
    )
    sends = bench.bytes_per_step(name) if sends is None else sends
    targets = []
    # Steps to each target from the curve, times the mean step on the link.
    for at, nats in bench.targets:
        steps = curve.steps_to(nats) if curve else None
        sent = curve.bytes_at([steps], sends) if curve and steps is not None else None
        time = steps * timing.mean if timing and steps is not None else None
        targets.append(
            {
                "at": at,
                "nats": nats,
                "steps": steps,
                "s": time,
                "bytes": sent[0] if sent else None,
                "speedup": None,
                "winner": False,
            }
        )
    errors = [
        *bench.errors.get((name, link), []),
        *(bench.errors.get((name, None), []) if link is not None else []),
    ]
    return {
        "link": link,
        "name": name,
        "contestant": bench.contestants[name],
        "kind": "thinwire" if bench.contestants[name] == OURS else "rival",
        "world": world,
        "parameters": parameters,
        "rounds": timing.rounds if timing else 0,
        "timed_steps": len(timing.step_s) if timing else 0,
        "step_median_s": middle[1],
        "step_p10_s": middle[0],
        "step_p90_s": middle[2],
        "step_mean_s": timing.mean if timing else None,
        "tokens_per_s": timing.tokens_per_s if timing else None,
        "bytes_per_step": sends,
        "fewer_bytes": _fewer(bench, name, link),
        "final_nats": curve.final if curve else None,
        "final_spread": curve.spread if curve else None,
        "seeds": curve.seeds if curve else 0,
        "gap": curve.final / dense.final - 1 if curve and dense and dense.final > 0 else None,
        "targets": targets,
        "peak_bytes": timing.peak_bytes if timing else None,
        "max_late_ms": timing.late_ms if timing else None,
        "kernel_over_meter": timing.kernel / timing.metered
        if timing and timing.kernel is not None and timing.metered
        else None,
        "parts": timing.parts if timing else {},
        "errors": errors,
    }


def _fewer(bench: Bench, name: str, link: str | None) -> float | None:
    """Return dense float32 bytes over a contestant's, both by the same count; of dense ones that
    were not counted, the closed form."""
    timing, base = (
        bench.timings.get((name, link or "")),
        bench.timings.get((bench.baseline or "", link or "")),
    )
    world, parameters = bench.setups.get(link or "", (None, None))
    # Without times there is only the curve's own count.
    if timing is None:
        own, dense = bench.bytes_per_step(name), bench.bytes_per_step(bench.baseline or "")
        return dense / own if own and dense else None
    # The same count on both sides; kernel and meter differ by headers.
    for own, dense in _pairs(timing, base):
        if own and dense:
            return dense / own
    own = timing.metered if timing.kernel is None else timing.kernel
    return 4 * parameters * 2 * (world - 1) / world / own if own and world and parameters else None


def _pairs(timing: Timing, base: Timing | None) -> Iterable[tuple[float | None, float | None]]:
    return [(timing.kernel, base.kernel), (timing.metered, base.metered)] if base else []


def _records(name: str, finished: FinishedRun) -> list[dict[str, Any]]:
    """Return a run as the records of a bench: a curve, and times."""
    run = finished.record
    result, sent = run["result"], [0.0, *(1e6 * each for each in finished.sent_megabytes)]
    validation = sorted({each["step"]: each["nats"] for each in run["curve"]["validation"]}.items())
    mean, shares = result["train_s"] / result["steps"], result["time_shares"]
    return [
        {
            "kind": "curve",
            "name": name,
            "contestant": OURS,
            "settings": run["config"],
            "seed": run["config"]["seed"],
            "validation": validation,
            "sent": [sent[step] for step, _ in validation],
        },
        {
            "kind": "time",
            "name": name,
            "contestant": OURS,
            "settings": run["config"],
            "link": {"name": "as trained"},
            "step_s": [mean],
            # Encoding runs beside these, so they make the whole.
            **{f"{part}_s": shares[part] * mean for part in ("compute", "exposed", "input")},
            "metered_bytes": sum(result["sent_bytes"]) / run["world"] / result["steps"],
            "tokens_per_s": result["tokens_per_s"],
        },
    ]


def _names(paths: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name runs by their strategies where those differ, else by their folders."""
    folders = [(path.parent if path.suffix == ".json" else path).resolve() for path in paths]
    for names in (
        [str(run["config"]["strategy"]) for run in runs],
        [folder.name for folder in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
