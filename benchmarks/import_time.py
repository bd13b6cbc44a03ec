"""What `import thinwire` costs beyond `import torch`, in fresh processes.

    python -m benchmarks.import_time --json benchmarks/results/import_time.json

Processes of each kind run in turn, and each times its own imports one after another, so torch's
seconds do not blur thinwire's milliseconds. `thinwire` loads the engine when `thinwire.attach` is
first named: that is the second figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.common import emit, parser, table

TARGET_S = 0.060
KINDS = {
    "import torch": ("import torch",),
    "import torch, thinwire": ("import torch", "import thinwire"),
    "… and thinwire.attach": ("import torch", "import thinwire", "thinwire.attach"),
    "import thinwire alone": ("import thinwire",),
}
PROBE = """
import json, sys, time
begun, seconds = time.perf_counter(), []
for line in {lines!r}:
    exec(line)
    seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
print(json.dumps(seconds))
"""


def probe(lines: tuple[str, ...]) -> list[float]:
    """Seconds of each line in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(lines=lines)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def beyond_torch(kind: str, seconds: list[float]) -> float:
    """Seconds of the lines that are not `import torch`."""
    return sum(
        taken for line, taken in zip(KINDS[kind], seconds, strict=True) if line != "import torch"
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--processes", type=int, default=12, help="of each kind (default 12)")
    args = arguments.parse_args()
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for lines in (
        KINDS.values()
    ):  # byte code is written and the files are in memory before the first that counts
        probe(lines)
    for turn in range(args.processes):
        for kind in list(KINDS)[:: 1 if turn % 2 else -1]:
            seconds[kind].append(probe(KINDS[kind]))

    totals = {kind: statistics.median(sum(run) for run in runs) for kind, runs in seconds.items()}
    beyond = {kind: [beyond_torch(kind, run) for run in runs] for kind, runs in seconds.items()}
    medians = {kind: statistics.median(runs) for kind, runs in beyond.items()}
    rows = [
        (kind, 1e3 * totals[kind], 1e3 * medians[kind], 1e3 * max(beyond[kind])) for kind in KINDS
    ]
    table(("ms", "all, median", "beyond torch, median", "worst"), rows)
    cost = medians["import torch, thinwire"]
    print(
        f"{args.processes} processes each; target: import thinwire beyond torch <= "
        f"{1e3 * TARGET_S:.0f} ms: {cost <= TARGET_S}"
    )
    figures = {
        kind: {"all_s": totals[kind], "beyond_torch_s": medians[kind], "runs_s": seconds[kind]}
        for kind in KINDS
    }
    emit(
        args.json,
        {
            "target_s": TARGET_S,
            "target_met": cost <= TARGET_S,
            "processes": args.processes,
            "results": figures,
        },
    )


if __name__ == "__main__":
    main()
