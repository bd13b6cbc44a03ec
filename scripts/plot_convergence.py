"""Draw the figures of the first job: validation loss against how many times fewer bytes than dense float32 were sent.

    python scripts/plot_first_job.py benchmarks/results/first_job.json docs/img/loss_and_bytes.svg

The rows of the table are the last lines of `make train ARGS="--strategy STRATEGY --steps 960"`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt


def main(table: str, out: str) -> None:
    mpl.rcParams["svg.hashsalt"] = "thinwire"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for row in json.loads(Path(table).read_text())["rows"]:
        label = f"{row['name']}: {row['validation_nats_per_byte']:.2f} at {row['fewer_bytes']:,.0f}x"
        axes.scatter(row["fewer_bytes"], row["validation_nats_per_byte"], s=60, zorder=3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("times fewer bytes than dense float32 (log scale)")
    axes.set_ylabel("validation loss, nats/byte")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    axes.grid(alpha=0.3)
    axes.set_title("The same GPT, text and 960 steps; only the strategy differs", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
