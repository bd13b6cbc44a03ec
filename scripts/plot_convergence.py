"""Draw the convergence table: validation loss against how many times fewer bytes than dense float32
were sent, all told.

    python scripts/plot_convergence.py benchmarks/results/convergence.json
    docs/img/loss_and_bytes.svg

The figures are those of `python -m benchmarks.convergence`; a point is the mean over seeds, its bar
the range.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

MARKS = "osD^vP*Xhp"


def main(table: str, out: str) -> None:
    mpl.rcParams["svg.hashsalt"] = "thinwire"  # the same figures give the same file
    rows: dict[str, list[dict[str, Any]]] = {}
    held = json.loads(Path(table).read_text())["runs"]
    length = statistics.mode(
        run["steps"] for run in held
    )  # the table's; others show how a gap falls
    for run in (run for run in held if run["steps"] == length):
        rows.setdefault(run["name"], []).append(run)
    figure, axes = plt.subplots(figsize=(9, 3.8))
    for mark, (name, runs) in zip(MARKS, rows.items(), strict=False):
        nats = [run["nats"] for run in runs]
        ratio, mean = statistics.fmean(run["ratio_all"] for run in runs), statistics.fmean(nats)
        label = f"{name}: {mean:.3f} at {ratio:,.0f}x"
        axes.errorbar(
            ratio,
            mean,
            yerr=[[mean - min(nats)], [max(nats) - mean]],
            fmt=mark,
            ms=7,
            capsize=3,
            zorder=3,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_xlabel("times fewer bytes than dense float32, all told (log scale)")
    axes.set_ylabel("validation loss, nats/byte")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
    axes.grid(alpha=0.3)
    seeds = max(len(runs) for runs in rows.values())
    axes.set_title(f"The same model, text and tokens; up to {seeds} seeds", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
