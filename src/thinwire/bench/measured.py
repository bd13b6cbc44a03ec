"""Reduce what the ranks of a job report to the figures of a record."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from thinwire.bench.job import Job


def curve(job: Job, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the losses of a run, and the bytes of its steps."""
    first = ranks[0]
    steps = len(first["seconds"])
    # the kernel does not tell what is in flight at a validation from what that sends; our meter
    # does
    sent = [
        rank["split"]["metered_bytes"] if rank["split"] else rank["sent_bytes"] for rank in ranks
    ]
    return {
        "parameters": parameters(job),
        "tokens_per_step": job.batch * job.model["context"] * len(ranks),
        "steps": steps,
        "validation": first["validation"],
        "bytes_per_step": statistics.mean(sent) / steps,
        "seconds": round(sum(first["seconds"]), 1),
        "last_losses": statistics.mean(first["losses"][-20:]),
    }


def whole(job: Job, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the losses of a run over a link, each with its second."""
    seconds = np.mean([rank["seconds"] for rank in ranks], axis=0).cumsum()
    burst = max(rank["burst_bytes"] for rank in ranks)  # of one host in one step
    return curve(job, ranks) | {
        "burst_bytes": burst,
        "points": [
            [step, round(float(seconds[step - 1]), 3), nats]
            for step, nats in ranks[0]["validation"]
        ],
    }


def times(job: Job, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the seconds, bytes and memory of timed steps."""
    warm = ranks[0]["warm"]
    # Ranks that take local steps do not wait for one another: the mean over ranks, step by step.
    step_s = np.mean([rank["seconds"][warm:] for rank in ranks], axis=0)
    n = len(step_s)
    first, mean = ranks[0], float(step_s.mean())
    split: dict[str, float] = first["split"]
    parts: dict[str, float | None] = dict.fromkeys(
        ("compute_s", "encode_s", "exposed_s", "metered_bytes")
    )
    # Only our own meter tells the parts; compute is what is left of rank 0's own steps.
    if split:
        parts = {
            "encode_s": split["encode_s"] / n,
            "exposed_s": split["exposed_s"] / n,
            "metered_bytes": split["metered_bytes"] / n,
        }
        own = float(np.mean(first["seconds"][warm:]))
        parts["compute_s"] = max(
            0.0, own - (split["encode_s"] + split["exposed_s"] + first["input_s"]) / n
        )
    return {
        "parameters": parameters(job),
        "step_s": [round(float(each), 5) for each in step_s],
        # A step of the rank that is done last.
        "slowest_s": max(sum(rank["seconds"][warm:]) for rank in ranks) / n,
        "input_s": first["input_s"] / n,
        **parts,
        "kernel_bytes": statistics.mean(rank["sent_bytes"] for rank in ranks) / n,
        "tokens_per_s": job.batch * job.model["context"] * len(ranks) / mean,
        "peak_bytes": max(rank["peak_bytes"] for rank in ranks),
        "setup_s": round(first["setup_s"], 2),
    }


FIGURES: dict[str, Callable[[Job, list[dict[str, Any]]], dict[str, Any]]] = {
    "curve": curve,
    "time": times,
    "small": times,
    "whole": whole,
}


def parameters(job: Job) -> int:
    """Return how many parameters a job's model has."""
    return sum(param.numel() for param in job.new_model().parameters())
