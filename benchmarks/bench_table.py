"""The bench's figures as the table of benchmarks/README.md: seconds a step and seconds to the
page's target, by link.

    python -m benchmarks.bench_table                # of benchmarks/results/bench
    python -m benchmarks.bench_table runs/bench

The quickest of a link in bold, ¹ where steps were timed in one round so far; below, the best
rival's seconds over the best of ours, and how far a cell's second round is from its first.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from thinwire.bench.records import RECORDS, for_page, read
from thinwire.bench.report import rows
from thinwire.bench.results import Bench, sorted_out


def cell(row: dict[str, Any] | None) -> str:
    """Seconds a step, and to the target."""
    if row is None or row["step_mean_s"] is None:
        return "–"
    whole = row["time_to_target_s"]
    told = (
        f"{row['step_mean_s']:.3f}{'¹' if row['rounds'] == 1 else ''}, "
        f"{'–' if whole is None else f'{whole:,.0f}'}"
    )
    return f"**{told}**" if row["winner"] else told


def repeated(bench: Bench) -> list[float]:
    """A step of the second round over one of the first, of every cell that has both."""
    ratios = []
    for name, link in bench.timings:
        rounds = {
            record["round"]: statistics.fmean(record["step_s"]) for record in bench.good(name, link)
        }
        if {0, 1} <= set(rounds):
            ratios.append(rounds[1] / rounds[0])
    return ratios


def main(folder: str = "benchmarks/results/bench") -> None:
    bench = sorted_out(for_page(read(Path(folder) / RECORDS)))
    share, target = bench.targets[bench.chosen]
    links = bench.fastest_first
    by_link = {
        link: {row["name"]: row for row in rows(bench) if row["link"] == link} for link in links
    }
    print(
        f"The target is the loss of {bench.baseline} after {share:.0%} of its steps, {target:.3f} "
        "nats.\n"
    )
    print("| | fewer bytes | nats | seeds |" + "".join(f" {link} |" for link in links))
    print("|---|---|---|---|" + "---|" * len(links))
    for row in sorted(
        by_link[links[0]].values(),
        key=lambda each: (each["kind"] == "rival", each["step_mean_s"] or 0.0),
    ):
        name = row["name"] + (" (rival)" if row["kind"] == "rival" else "")
        fewer = "–" if row["fewer_bytes"] is None else f"{row['fewer_bytes']:,.1f}x"
        nats = "–" if row["final_nats"] is None else f"{row['final_nats']:.4f}"
        print(
            f"| {name} | {fewer} | {nats} | {row['seeds']} | "
            f"{' | '.join(cell(by_link[link].get(row['name'])) for link in links)} |"
        )
    print()
    for link in links:
        there = [
            row for row in by_link[link].values() if row["time_to_target_s"] is not None
        ]  # the quickest first
        ours, rival = (
            next((row for row in there if row["kind"] == kind), None)
            for kind in ("thinwire", "rival")
        )
        if ours and rival:
            took, least = rival["time_to_target_s"], ours["time_to_target_s"]
            print(
                f"{link}: {took / least:.2f} ({rival['name']}: {took:,.0f} s; {ours['name']}: "
                f"{least:,.0f} s)"
            )
    if ratios := repeated(bench):
        told = (
            f"{statistics.median(ratios):.2f} in the median, {min(ratios):.2f} to {max(ratios):.2f}"
        )
        print(f"\nSecond rounds over first, {len(ratios)} cells: {told}")
    if late := [timing.late_ms for timing in bench.timings.values() if timing.late_ms is not None]:
        print(
            f"Latest packet, {len(late)} cells with delay: {statistics.median(late):.1f} ms in "
            f"the median, {max(late):.1f} at worst"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
