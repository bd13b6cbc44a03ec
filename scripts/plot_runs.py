"""Draw validation loss against bytes sent for some training runs.

    python scripts/plot_runs.py OUT.svg NAME=RUN.json [NAME=RUN.json ...]

Each RUN.json is what `python -m thinwire.train --out FOLDER` writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt


def main(out: str, *runs: str) -> None:
    mpl.rcParams["svg.hashsalt"] = "thinwire"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for run in runs:
        name, _, path = run.partition("=")
        told = json.loads(Path(path).read_text())
        megabytes, loss = told["report"]["sent_bytes"] / 1e6, told["result"]["validation_nats_per_byte"]
        axes.scatter(megabytes, loss, s=60, zorder=3)
        axes.annotate(name, (megabytes, loss), textcoords="offset points", xytext=(8, 4), fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by each rank (log scale)")
    axes.set_ylabel("validation loss, nats/byte")
    axes.margins(x=0.25, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_title("The same GPT, text and steps; only the strategy differs", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
