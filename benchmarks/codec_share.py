"""What share of a step codecs take: 12 M-parameter GPT over an emulated 1 Gb/s link, with the
native kernels and in plain torch.

    python -m benchmarks.codec_share --json benchmarks/results/codec_share.json

Four ranks, one thread each, 512 tokens a rank and step, in the lab: the step of the bench's table
with twice its tokens, about 1.7 s on two cores. Codec time is the processor time of the lanes'
threads: codecs and routes. It is set beside the processor time of the whole rank, which no other
job on the machine stretches (share), and beside the step by the clock, exposed wire too. Target: at
most 3 %.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from benchmarks.common import emit, parser, table, with_kept
from thinwire.bench.contestants import FULL, chosen
from thinwire.bench.job import Job
from thinwire.bench.networks import swept
from thinwire.bench.running import ran
from thinwire.bench.studies import LARGE
from thinwire.bench.study import bundled
from thinwire.data.cache import cache_folder
from thinwire.kernels import native

WORLD, BATCH, STEPS, WARM = 4, 8, 12, 4
NAMES = [
    "4-bit gradients, feedback",
    "top-k 8 of 64 of each update, 2 bits",
    "local steps H=10, 4 bits",
    "SparseLoCo-like H=15",
]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=STEPS)
    made.add_argument(
        "--only",
        default="",
        help="strategies whose name holds this; the file's others stay as they were",
    )
    options = made.parse_args()
    train, held = bundled(cache_folder() / "bench")
    (network,) = swept(WORLD, (1e9,), (0.0,))
    rows, told = [], []
    for contestant in chosen([name for name in NAMES if options.only in name], FULL):
        for kernels in (native.available()[-1], "torch"):
            periods = -(-options.steps // contestant.period)
            warm = max(
                WARM, 2 * contestant.period
            )  # the first round of all touches its memory for the first time
            stop = warm + periods * contestant.period
            job = Job(
                contestant.module,
                contestant.settings | contestant.timed,
                model=LARGE,
                batch=BATCH,
                train=train,
                held=held,
                steps=10_000,
                stop=stop,
                warm=warm,
            )
            os.environ[native.VARIABLE] = kernels
            with network.lab() as lab:
                ranks, _ = ran(lab, job, Path(sys.executable))
            first, n = ranks[0], periods * contestant.period
            step, codec = statistics.mean(first["seconds"][warm:]), first["split"]["encode_s"] / n
            share = first["split"]["encode_s"] / first["processor_s"]
            told.append(
                {
                    "strategy": contestant.name,
                    "kernels": kernels,
                    "step_s": step,
                    "processor_s": first["processor_s"] / n,
                    "codec_s": codec,
                    "share": share,
                    "share_of_clock": codec / step,
                }
            )
            seconds = (f"{each * 1e3:.0f}" for each in (step, first["processor_s"] / n))
            rows.append(
                (
                    contestant.name,
                    kernels,
                    *seconds,
                    f"{codec * 1e3:.1f}",
                    f"{share:.1%}",
                    f"{codec / step:.1%}",
                )
            )
    table(
        ("strategy", "kernels", "step, ms", "processor, ms", "codecs, ms", "share", "by the clock"),
        rows,
    )
    emit(
        options.json,
        {
            "world": WORLD,
            "batch": BATCH,
            "link": network.name,
            "steps": options.steps,
            "rows": with_kept(options.json if options.only else None, told, "strategy", "kernels"),
        },
    )


if __name__ == "__main__":
    main()
