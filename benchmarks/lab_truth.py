"""Whether the lab delivers what is asked: rate × round trip × loss, and where it tops out.

    python -m benchmarks.lab_truth --json benchmarks/results/lab_truth.json

Two hosts; figures from inside them, as `thinwire lab check` takes them: the median of TCP
ping-pongs, frames that arrive from a UDP flood, and numbered packets counted. A share of lost
packets stands beside its 95 % interval, which misses the truth once in 20 cells.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.common import Neighbours, emit, parser, table
from thinwire.lab import Lab
from thinwire.lab.check import loss, rate, round_trip, serve
from thinwire.net import Wire, uniform

RATES, RTTS, LOSSES = (10e6, 100e6, 1e9), (0.0, 0.02, 0.1), (0.0, 0.01)
BEYOND = (2.5e9, 5e9, 10e9)


def cell(bits_per_s: float, rtt: float, share: float, seed: int) -> dict[str, Any]:
    """One network, measured."""
    with (
        Neighbours() as near,
        Lab(uniform(2, bits_per_s, Wire(rtt / 2, loss=share), seed=seed)) as lab,
    ):
        serve(lab, "host1")
        found = [each(lab, "host0", "host1") for each in (round_trip, rate, loss)]
        stats = lab.line_stats()
    return {
        "rate": bits_per_s,
        "rtt": rtt,
        "loss": share,
        **{each.what + "_found": asdict(each) for each in found},
        "line": asdict(stats) if stats else None,
        "neighbours": near.cores,
    }


def row(told: dict[str, Any]) -> list[Any]:
    """A line of the table."""
    rtt, bits, lost = (told[f"{what}_found"] for what in ("rtt", "rate", "loss"))
    inside = lost["low"] <= told["loss"] <= lost["high"]
    late = (
        f"{told['line']['max_late_ms']:.2f}"
        if told["line"] and told["line"]["max_late_ms"] is not None
        else "–"
    )
    return [
        f"{told['rate'] / 1e6:g} Mb/s, {told['rtt'] * 1e3:g} ms, {told['loss'] * 100:g} %",
        f"{bits['measured'] / told['rate']:.3f}",
        f"{rtt['measured'] * 1e3:.2f}",
        f"{lost['measured'] * 100:.3f} ({lost['low'] * 100:.3f} to {lost['high'] * 100:.3f})",
        "yes" if inside else "no",
        late,
    ]


def main() -> None:
    made = parser(__doc__)
    asked = made.parse_args()
    cells = [(bits, rtt, share) for bits in RATES for rtt in RTTS for share in LOSSES]
    cells += [
        (bits, rtt, share)
        for bits in BEYOND
        for rtt, share in ((0.0, 0.0), (0.02, 0.0), (0.02, 0.01))
    ]
    held = []
    for seed, each in enumerate(cells):
        held.append(cell(*each, seed))
        print(*row(held[-1]), sep="  ", flush=True)
    print()
    table(
        [
            "rate, round trip, loss",
            "rate / asked",
            "rtt ms",
            "lost % (95 %)",
            "inside",
            "max late ms",
        ],
        [row(each) for each in held],
    )
    emit(asked.json, {"cells": held})


if __name__ == "__main__":
    main()
