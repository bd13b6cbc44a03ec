"""The bench's figures as the table of benchmarks/README.md: seconds a step and seconds to the page's target, by link.

    python -m benchmarks.bench_table                # of benchmarks/results/bench
    python -m benchmarks.bench_table runs/bench

The quickest of a link in bold; below, the best rival's seconds over the best of ours, by link.
"""

from __future__ import annotations

import sys
from pathlib import Path

from thinwire.bench.contestants import DDP, OURS
from thinwire.bench.records import RECORDS, for_page, read
from thinwire.bench.results import Bench, sorted_out


def seconds(bench: Bench, target: float) -> dict[tuple[str, str], float]:
    """Seconds to the target, of every contestant and link that has both a curve to it and times."""
    out = {}
    for (name, link), timing in bench.timings.items():
        steps = bench.curves[name].steps_to(target) if name in bench.curves else None
        if steps is not None:
            out[name, link] = steps * timing.mean
    return out


def main(folder: str = "benchmarks/results/bench") -> None:
    bench = sorted_out(for_page(read(Path(folder) / RECORDS)))
    share, target = bench.targets[bench.chosen]
    links = sorted(bench.links, key=lambda link: (-float(bench.links[link]["rate"]), float(bench.links[link]["rtt"])))
    took, dense = seconds(bench, target), bench.bytes_per_step(DDP) or 0.0
    print(f"The target is the loss of {DDP} after {share:.0%} of its steps, {target:.3f} nats.\n")
    print("| | fewer bytes | nats | seeds |" + "".join(f" {link} |" for link in links))
    print("|---|---|---|---|" + "---|" * len(links))
    best = {link: min((value for (_, at), value in took.items() if at == link), default=None) for link in links}
    first = {name: bench.timings[name, links[0]].mean for name in bench.contestants if (name, links[0]) in bench.timings}
    for name in sorted(first, key=lambda each: (bench.contestants[each] != OURS, first[each])):
        curve, sent = bench.curves.get(name), bench.bytes_per_step(name)
        cells = []
        for link in links:
            timing, whole = bench.timings.get((name, link)), took.get((name, link))
            cell = "–" if timing is None else f"{timing.mean:.3f}, {'–' if whole is None else f'{whole:,.0f}'}"
            cells.append(f"**{cell}**" if whole is not None and whole == best[link] else cell)
        told = f"{curve.final:.4f} | {curve.seeds}" if curve else "– | –"
        rival = "" if bench.contestants[name] == OURS else " (rival)"
        print(f"| {name}{rival} | {f'{dense / sent:,.1f}x' if sent else '–'} | {told} | {' | '.join(cells)} |")
    print()
    for link in links:
        ours, rival = (
            min((value, name) for (name, at), value in took.items() if at == link and (bench.contestants[name] == OURS) is mine)
            for mine in (True, False)
        )
        print(f"{link}: {rival[0] / ours[0]:.2f} ({rival[1]}: {rival[0]:,.0f} s; {ours[1]}: {ours[0]:,.0f} s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
