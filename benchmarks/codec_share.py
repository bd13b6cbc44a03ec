"""What share of a step codecs take: 12 M-parameter GPT over an emulated 1 Gb/s link, with the native kernels and in plain torch.

    python -m benchmarks.codec_share --json benchmarks/results/codec_share.json

Two ranks, one thread each, in the lab. Codec time is the processor time of a lane's thread, codecs and routes; the step is the whole of it
by the clock, exposed wire too. Target: at most 3 % for 4-bit and for sparse strategies.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from benchmarks.common import emit, parser, table
from thinwire.bench.contestants import FULL, chosen
from thinwire.bench.job import Job
from thinwire.bench.study import LARGE, bundled, links, ran
from thinwire.data.cache import cache_folder
from thinwire.kernels import native

WORLD, STEPS, WARM = 2, 24, 4
NAMES = ["4-bit gradients, feedback", "top-k 8 of 64 of each update, 2 bits", "local steps H=10, 4 bits", "SparseLoCo-like H=15"]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=STEPS)
    options = made.parse_args()
    train, held = bundled(cache_folder() / "bench")
    (link,) = links((1e9,), (0.0,))
    rows, told = [], []
    for contestant in chosen(NAMES, FULL):
        for kernels in (native.available()[-1], "torch"):
            periods = -(-options.steps // contestant.period)
            stop = WARM + periods * contestant.period
            job = Job(
                contestant.module, contestant.settings | contestant.timed, model=LARGE, batch=4, train=train, held=held, steps=10_000, stop=stop, warm=WARM
            )
            os.environ[native.VARIABLE] = kernels
            with link.lab(WORLD) as lab:
                ranks, _ = ran(lab, job, Path(sys.executable))
            first, n = ranks[0], periods * contestant.period
            step = statistics.mean(first["seconds"][WARM:])
            codec = first["split"]["encode_s"] / n
            told.append({"strategy": contestant.name, "kernels": kernels, "step_s": step, "codec_s": codec, "share": codec / step})
            rows.append((contestant.name, kernels, f"{step * 1e3:.0f}", f"{codec * 1e3:.1f}", f"{codec / step:.1%}"))
    table(("strategy", "kernels", "step, ms", "codecs, ms", "share"), rows)
    emit(options.json, {"world": WORLD, "link": link.name, "steps": options.steps, "rows": told})


if __name__ == "__main__":
    main()
