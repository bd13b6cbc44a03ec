"""The meter's bytes against the closed form of each route, and against the kernel's own counter.

    python -m benchmarks.meter_vs_counters --json benchmarks/results/meter_vs_counters.json

Ranks train in a network namespace of their own, where every byte on `lo` is theirs: payloads,
gloo's frames, TCP/IP headers, acknowledgements, heartbeats, barriers. The counter is read before
and after the timed steps, the meter's bytes are summed over ranks. The namespace has no name, so it
ends with the last process in it; the script looks whether it did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import thinwire
from benchmarks.common import batch, emit, model, parser, run_ranks, table
from thinwire import Strategy, recipes
from thinwire.core import RankContext
from thinwire.engine import Syncer
from thinwire.how import gather, two_shot
from thinwire.what import feedback, topk, uniform

TARGET = 0.03
WORLDS = (2, 3)
WARMUP, STEPS, PERIOD = 5, 20, 5  # whole periods of DiLoCo
STRATEGIES = {
    "dense": Strategy(),
    "4-bit feedback, two_shot": Strategy(what=feedback(uniform(4)), how=two_shot()),
    "top 1 % feedback, gather": Strategy(what=feedback(topk(0.01)), how=gather()),
    "PowerSGD, rank 4": recipes.powersgd(rank=4),
    f"DiLoCo, every {PERIOD}": recipes.diloco(period=PERIOD),
}
LO_UP = 'ip link set lo up && exec "$@"'


def lo_sent_bytes() -> int:
    """Bytes that `lo` has sent in this process's namespace (/sys/class/net shows the namespace of
    whoever mounted /sys)."""
    line = next(
        line
        for line in Path("/proc/self/net/dev").read_text().splitlines()
        if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[8])


def expected_bytes(sync: Syncer, steps: int) -> float:
    """The closed form for this rank: bytes of one flight of every slice, times the launches in
    `steps` steps."""
    how, what = sync.strategy.how, sync.strategy.what
    ctx = RankContext(sync.driver.rank, tuple(range(sync.driver.world)), step=0, seed=0)
    flight = [
        how.sent_nbytes(what, part.spec, ctx) for bucket in sync.buckets for part in bucket.slices
    ]
    return sum(nbytes or 0.0 for nbytes in flight) * (steps // sync.strategy.when.period)


def measure(rank: int, name: str) -> dict[str, float]:
    """Bytes of `STEPS` steps, summed over ranks: by the counter, by the meter and by the closed
    form."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with thinwire.attach(net, optimizer, STRATEGIES[name]) as sync:

        def train(steps: int) -> tuple[int, float, float]:
            for step in range(steps):
                optimizer.zero_grad()
                net(*(batch(1, 8, seed=8 * step + 2 * rank + i) for i in range(2)))[1].backward()
                optimizer.step()
            dist.barrier()
            report = sync.report()
            return lo_sent_bytes(), report.sent_bytes, report.setup_bytes

        before = train(WARMUP)
        dist.barrier()  # rank 0 has read the counter
        begun = time.perf_counter()
        after = train(STEPS)
        seconds = time.perf_counter() - begun
        dist.barrier()
        mine = torch.tensor(
            [after[1] - before[1], after[2] - before[2], expected_bytes(sync, STEPS)],
            dtype=torch.float64,
        )
        dist.all_reduce(mine)
    meter, around, closed = mine.tolist()
    return {
        "counter": after[0] - before[0],
        "meter": meter,
        "meter_around": around,
        "closed_form": closed,
        "seconds": seconds,
    }


def inside() -> None:
    """Everything that runs in the namespace; one line of JSON for the process outside."""
    figures = {
        f"{name} / {world} ranks": run_ranks(world, measure, name)
        for world in WORLDS
        for name in STRATEGIES
    }
    print(json.dumps({"namespace": os.readlink("/proc/self/ns/net"), "figures": figures}))


def still_there(namespace: str) -> bool:
    """Whether any process that this one may look at lives in the namespace."""
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if os.readlink(link) == namespace:
                return True
        except OSError:  # ended meanwhile, or another user's
            continue
    return False


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--inside",
        action="store_true",
        help="measure here and now: for the script's own use, in a namespace",
    )
    args = arguments.parse_args()
    if args.inside:
        inside()
        return
    enter = (
        ["unshare", "--net"]
        if os.geteuid() == 0
        else ["unshare", "--user", "--map-root-user", "--net"]
    )
    command = [
        *enter,
        "sh",
        "-c",
        LO_UP,
        "sh",
        sys.executable,
        "-m",
        "benchmarks.meter_vs_counters",
        "--inside",
    ]
    quiet = {
        **os.environ,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # no name server in there, of which torch would warn
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(enter)} ended with {done.returncode}: this needs Linux, `ip`, and root or "
            "user namespaces"
        )
    told = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for name, found in told["figures"].items():
        found["counter_over_meter"] = found["counter"] / (found["meter"] + found["meter_around"])
        found["meter_over_closed_form"] = found["meter"] / found["closed_form"]
        rows.append(
            (
                name,
                found["meter"] / STEPS / 1e6,
                found["meter_over_closed_form"],
                found["counter_over_meter"],
            )
        )
    gone = not still_there(told["namespace"])
    met = all(abs(found["counter_over_meter"] - 1) <= TARGET for found in told["figures"].values())
    table(("summed over ranks", "MB a step", "meter / closed form", "counter / meter"), rows)
    print(
        f"{STEPS} steps; target: counter / meter within {TARGET:.0%}: {met}; namespace gone: {gone}"
    )
    emit(
        args.json,
        {
            "target": TARGET,
            "target_met": met,
            "steps": STEPS,
            "namespace_gone": gone,
            "results": told["figures"],
        },
    )


if __name__ == "__main__":
    main()
