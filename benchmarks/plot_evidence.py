"""Draw the study of avoidance: last losses by replicas and outer rate, by period, and by what the
deltas say.

    python -m benchmarks.plot_evidence benchmarks/results/evidence docs/img/evidence.svg

The figures are those of `python -m benchmarks.evidence`; a point is the mean over seeds, its bar
the range, the line data parallelism.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from benchmarks.evidence import (
    BEST,
    CONFIRMED,
    NAMES,
    PARALLEL,
    RATES,
    WORLDS,
    known,
    replicas,
    told,
)

MARKS = "osD"
PERIODS = {"1": "H=1", "10": "H=10", "30": replicas(4, BEST), "100": "H=100"}
SAID = {
    "float32": replicas(4, BEST),
    "4 bits": "4 bits",
    "2 bits,\nH=10": "2 bits, H=10",
    "2 bits,\nH=10,\nfeedback": "2 bits, H=10, feedback",
    "3 fragments,\nalpha 0.5": "3 fragments",
    "3 fragments,\nalpha 0": "3 fragments, alpha 0",
}


def points(axes: Any, at: list[Any], losses: list[list[float]], mark: str, **more: Any) -> None:
    """Means with their ranges."""
    means = [statistics.fmean(each) for each in losses]
    low = [mean - min(each) for mean, each in zip(means, losses, strict=True)]
    high = [max(each) - mean for mean, each in zip(means, losses, strict=True)]
    axes.errorbar(at, means, yerr=[low, high], marker=mark, ms=6, capsize=3, zorder=3, **more)


def main(folder: str, out: str) -> None:
    mpl.rcParams["svg.hashsalt"] = "thinwire"  # the same figures give the same file
    losses = {name: list(of_seeds.values()) for name, of_seeds in told(known(Path(folder))).items()}
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.8), sharey=True, width_ratios=(1, 1, 1.6)
    )
    for mark, rate in zip(MARKS, RATES, strict=True):
        there = [world for world in WORLDS if replicas(world, rate) in losses]
        points(
            left,
            [WORLDS.index(world) for world in there],
            [losses[replicas(world, rate)] for world in there],
            mark,
            label=f"outer rate {rate}",
        )
    left.set_xticks(range(len(WORLDS)), map(str, WORLDS))
    left.set_xlabel("replicas")
    left.set_ylabel("last validation loss, nats/byte")
    left.legend(frameon=False, fontsize=8.5)
    panels = (
        (middle, PERIODS, "H, steps between talks (4 replicas)"),
        (right, SAID, "what deltas say (4 replicas; H=30, float32 unless told)"),
    )
    for axes, chosen, label in panels:
        held = {name: losses[run] for name, run in chosen.items() if run in losses}
        points(axes, list(held), list(held.values()), "o", linestyle="-" if axes is middle else "")
        axes.set_xlabel(label)
    right.tick_params(axis="x", labelsize=8)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        if PARALLEL in losses:
            axes.axhline(
                statistics.fmean(losses[PARALLEL]),
                color="black",
                linewidth=0.9,
                linestyle="--",
                zorder=2,
            )
    counts = {len(losses[name]) for name in NAMES if name in losses and name not in CONFIRMED}
    seeds = f"{'up to ' if len(counts) > 1 else ''}{max(counts)} seeds"
    figure.suptitle(
        f"0.48 M parameters, 9.8 M tokens in every run, {seeds}; dashed: data parallelism",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
