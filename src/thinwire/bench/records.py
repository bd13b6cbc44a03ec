"""Read and write a bench's file of records, one JSON object a line, and choose those of a page."""

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
    """Return the versions and the machine that figures come from."""
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
    """Read the records of a file.

    A last line that the end of a run cut off is left out, since it is measured again.

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


def finite(value: Any) -> Any:
    """Return `value` with None for every float that is not finite, which JSON cannot hold.

    Example:
        >>> finite({"validation": [(10, 2.5), (20, float("nan"))]})
        {'validation': [[10, 2.5], [20, None]]}
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def no_number(validation: Sequence[tuple[int, float | None]]) -> str:
    """Return a sentence on the first loss that is not finite, or "" where all are finite.

    Example:
        >>> no_number([(10, 2.5), (20, float("nan")), (30, None)])
        'the loss was no number at step 20'
    """
    ill = (step for step, nats in validation if nats is None or not math.isfinite(nats))
    return next((f"the loss was no number at step {step}" for step in ill), "")


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records to a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(each, allow_nan=False) + "\n" for each in records), encoding="utf-8"
    )
    partial.replace(path)


def curve_models(records: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the parameter counts of the models that have curves; a page shows one model.

    Example:
        >>> failed = {"kind": "curve", "error": "hangs"}
        >>> time = {"kind": "time", "parameters": 7}
        >>> curve_models([{"kind": "curve", "parameters": 480_096}, failed, time])
        {480096}
    """
    return {
        int(each["parameters"])
        for each in records
        if each["kind"] == "curve" and each.get("parameters") is not None
    }


def early(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the curves of seeds that some contestant has not run yet.

    Means over different seeds could not be compared.

    Example:
        >>> runs = (("a", 0), ("a", 1), ("b", 0))
        >>> early([{"kind": "curve", "name": name, "seed": seed} for name, seed in runs])
        [{'kind': 'curve', 'name': 'a', 'seed': 1}]
    """
    curves = [each for each in records if each["kind"] == "curve"]
    seeds: dict[str, set[int]] = {}
    for curve in curves:
        seeds.setdefault(curve["name"], set()).add(curve["seed"])
    shared = set.intersection(*seeds.values()) if seeds else set()
    return [curve for curve in curves if curve["seed"] not in shared]


def for_page(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of a page.

    They are curves of the same seeds, the proof beside its prediction, and no step times of the
    small model.
    """
    # 1. Step times of the small model are used for its prediction alone.
    small = {
        each["name"]: each for each in records if each["kind"] == "small" and not each["error"]
    }
    curves = {
        each["name"]: each
        for each in records
        if each["kind"] == "curve" and each["seed"] == 0 and not each["error"]
    }
    # 2. Curves and times, but for curves of seeds that some contestant lacks.
    too_early = early(records)
    out = [each for each in records if each["kind"] in ("curve", "time") and each not in too_early]
    for whole in (each for each in records if each["kind"] == "whole"):
        curve, step = curves.get(whole["name"]), small.get(whole["name"])
        if whole["error"] or curve is None or step is None:
            out.append(whole)
            continue
        # 3. The target of a whole run is the loss of its curve after 80 % of the steps.
        steps, losses = zip(*curve["validation"], strict=True)
        target = float(np.interp(0.8 * steps[-1], steps, losses))
        # Steps to it, times the mean step, is the prediction; the whole run's own clock is the
        # measure.
        needed = _reached(steps, losses, target)
        assert needed is not None  # the target was read from this curve
        took = _reached(
            [at for _, at, _ in whole["points"]], [nats for _, _, nats in whole["points"]], target
        )
        mean = statistics.mean(step["step_s"])
        figures = {
            "target": target,
            "predicted_s": needed * mean,
            "measured_s": took,
            "step_s": mean,
        }
        out.append({**whole, **figures, "same_losses": whole["validation"] == curve["validation"]})
    return [*(each for each in records if each["kind"] == "environment"), *out]


def _reached(at: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Return where losses first come down to a target, or None where they never do."""
    index = next((index for index, loss in enumerate(losses) if loss <= target), None)
    if index is None:
        return None
    if index == 0:
        return at[0]
    fraction = (losses[index - 1] - target) / (losses[index - 1] - losses[index])
    return at[index - 1] + fraction * (at[index] - at[index - 1])
