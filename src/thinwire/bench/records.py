"""The file of records that a bench keeps: one JSON object a line, what it is read from, and what of
it a page shows."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinwire.errors import BenchError
from thinwire.version import __version__

RECORDS = "records.jsonl"


def environment() -> dict[str, Any]:
    """Where figures come from."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "thinwire": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "cpu": next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
            platform.processor(),
        ),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off by the end of a run is left out, since it
    is measured again.

    Raises:
        BenchError: another line is no record.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise BenchError(f"{path}, line {number}: no record") from None
    return records


def finite(told: Any) -> Any:
    """The same with None for every float that JSON has no word for.

    Example:
        >>> finite({"validation": [(10, 2.5), (20, float("nan"))]})
        {'validation': [[10, 2.5], [20, None]]}
    """
    if isinstance(told, dict):
        return {key: finite(each) for key, each in told.items()}
    if isinstance(told, list | tuple):
        return [finite(each) for each in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def no_number(validation: Sequence[tuple[int, float | None]]) -> str:
    """Where a loss was no number first; nothing where all are numbers.

    Example:
        >>> no_number([(10, 2.5), (20, float("nan")), (30, None)])
        'the loss was no number at step 20'
    """
    ill = (step for step, nats in validation if nats is None or not math.isfinite(nats))
    return next((f"the loss was no number at step {step}" for step in ill), "")


def write(path: Path, records: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(each, allow_nan=False) + "\n" for each in records), encoding="utf-8"
    )
    partial.replace(path)


def curve_models(records: Iterable[Mapping[str, Any]]) -> set[int]:
    """The parameters of the models whose curves there are: a page shows one.

    Example:
        >>> curve_models([{"kind": "curve", "parameters": 480_096}, {"kind": "curve", "error": "hangs"}, {"kind": "time", "parameters": 7}])
        {480096}
    """
    return {
        int(each["parameters"])
        for each in records
        if each["kind"] == "curve" and each.get("parameters") is not None
    }


def early(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Curves of seeds that not every contestant has had its turn with: means over other seeds are
    no match for one another.

    Example:
        >>> curves = [{"kind": "curve", "name": name, "seed": seed} for name, seed in (("a", 0), ("a", 1), ("b", 0))]
        >>> early(curves)
        [{'kind': 'curve', 'name': 'a', 'seed': 1}]
    """
    curves = [each for each in records if each["kind"] == "curve"]
    seeds: dict[str, set[int]] = {}
    for curve in curves:
        seeds.setdefault(curve["name"], set()).add(curve["seed"])
    shared = set.intersection(*seeds.values()) if seeds else set()
    return [curve for curve in curves if curve["seed"] not in shared]


def for_page(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the page shows: curves of the same seeds, a proof beside what was predicted of it, and
    no step times of the small model."""
    small = {
        each["name"]: each for each in records if each["kind"] == "small" and not each["error"]
    }
    curves = {
        each["name"]: each
        for each in records
        if each["kind"] == "curve" and each["seed"] == 0 and not each["error"]
    }
    apart = early(records)
    out = [each for each in records if each["kind"] in ("curve", "time") and each not in apart]
    for whole in (each for each in records if each["kind"] == "whole"):
        curve, step = curves.get(whole["name"]), small.get(whole["name"])
        if whole["error"] or curve is None or step is None:
            out.append(whole)
            continue
        steps, losses = zip(*curve["validation"], strict=True)
        target = float(np.interp(0.8 * steps[-1], steps, losses))
        needed = _reached(steps, losses, target)
        assert needed is not None  # the target was read from this curve
        took = _reached(
            [at for _, at, _ in whole["points"]], [nats for _, _, nats in whole["points"]], target
        )
        mean = statistics.mean(step["step_s"])
        told = {"target": target, "predicted_s": needed * mean, "measured_s": took, "step_s": mean}
        out.append({**whole, **told, "same_losses": whole["validation"] == curve["validation"]})
    return [*(each for each in records if each["kind"] == "environment"), *out]


def _reached(at: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Where losses first come down to a target; None where they never do."""
    place = next((place for place, loss in enumerate(losses) if loss <= target), None)
    if place is None:
        return None
    if place == 0:
        return at[0]
    share = (losses[place - 1] - target) / (losses[place - 1] - losses[place])
    return at[place - 1] + share * (at[place] - at[place - 1])
