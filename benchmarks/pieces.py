"""What lanes and slices that the link has chosen are worth: steps by attach's defaults beside those
by `lanes="auto", slice_bytes="auto"`.

    python -m benchmarks.pieces          # runs what is missing into results/pieces, then tells;
                                         some minutes
    python -m benchmarks.pieces --table  # what the records say

The 12.2 M-parameter GPT of `thinwire bench`, four hosts of the lab, steps interleaved as there.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import parser, table
from thinwire.bench.contestants import BEGINS_DENSE, Contestant, ours
from thinwire.bench.networks import swept
from thinwire.bench.records import RECORDS, read
from thinwire.bench.studies import STUDY
from thinwire.bench.study import Bench
from thinwire.data.cache import cache_folder
from thinwire.how import auto, two_shot
from thinwire.on import gradients
from thinwire.recipes import powersgd
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, uniform
from thinwire.when import every

FOLDER = Path(__file__).parent / "results" / "pieces"
NETWORKS = swept(STUDY.world, (1e9, 1e8), (0.0, 0.05))
STRATEGIES = {
    "dense": Strategy(every(1), identity(), auto(), gradients()),
    "4 bits": Strategy(every(1), feedback(uniform(4)), two_shot(), gradients()),
    "PowerSGD rank 4": replace(powersgd(rank=4, start=2), how=auto()),
}
WAYS: dict[str, dict[str, Any]] = {"default": {}, "auto": {"lanes": "auto", "slice_bytes": "auto"}}


def contestants() -> tuple[Contestant, ...]:
    """Each strategy in each way; one that begins dense has all its steps timed, as in the bench."""
    return tuple(
        ours(
            f"{name}, {way}",
            strategy,
            attach=attach,
            job=BEGINS_DENSE if name.startswith("PowerSGD") else {},
        )
        for name, strategy in STRATEGIES.items()
        for way, attach in WAYS.items()
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--table", action="store_true", help="run nothing, tell what the records say")
    options = made.parse_args()
    if not options.table:
        study = replace(STUDY, contestants=contestants(), networks=NETWORKS, rounds=1)
        Bench(study, FOLDER, cache_folder() / "rivals", print, retry=True).run(
            "benchmarks.pieces", ("times",)
        )
    steps = {
        (each["name"], each["link"]["name"]): statistics.fmean(each["step_s"])
        for each in read(FOLDER / RECORDS)
        if each["kind"] == "time" and not each["error"]
    }
    rows = []
    for name in STRATEGIES:
        for network in NETWORKS:
            default, chosen = (steps.get((f"{name}, {way}", network.name)) for way in WAYS)
            if default and chosen:
                rows.append(
                    (
                        name,
                        network.name,
                        f"{default:.3f}",
                        f"{chosen:.3f}",
                        f"{default / chosen:.2f}",
                    )
                )
    table(("strategy", "link", "default, s", "auto, s", "times as fast"), rows)


if __name__ == "__main__":
    main()
