"""Measure what grows with the world: one rank's side of a flight, and 64 ranks of one machine.

    python -m benchmarks.world                # one rank's side at 64, 256, 1,024 and 8,192 ranks
    python -m benchmarks.world --ranks 64     # real ranks, forked from one process

One rank's side runs the route's own Python; its peers are fake: each message that is due is there
at once. Seconds are processor time of the flight, not of the fake peers, with kernels on buckets so
small that they take little: 256 values a rank. Messages and bytes are counted, connections and
agreement are in closed form.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

import thinwire
from benchmarks.common import emit, parser, table
from thinwire.core import AllReduce, Codec, Exchange, Part, RankContext, Route, Spec
from thinwire.drive.descriptors import needed
from thinwire.engine.agree import DIRECTLY
from thinwire.how import direct, gather, hierarchical, native, ring, two_shot
from thinwire.what import feedback, identity, uniform

WORLDS = (64, 256, 1024, 8192)
BLOCK = 256
STEPS = 5
SIDES: dict[str, tuple[Route, Codec]] = {
    "two_shot, 4 bits": (two_shot(slot_bytes=1 << 20), uniform(4)),
    "two_shot, feedback of 4 bits": (two_shot(slot_bytes=1 << 20), feedback(uniform(4))),
    "two_shot, 4 bits stochastic": (
        two_shot(slot_bytes=1 << 20),
        uniform(4, rounding="stochastic"),
    ),
    "direct, dense": (direct(slot_bytes=1 << 20), identity()),
    "hierarchical of 8, 4 bits": (
        hierarchical(native(), two_shot(slot_bytes=1 << 20), node=8),
        uniform(4),
    ),
    "gather, 4 bits": (gather(), uniform(4)),
    "ring, 4 bits": (ring(), uniform(4)),
}
MOST = {"gather, 4 bits": 1024, "ring, 4 bits": 1024}
"""The largest world in which a route that takes K times as long is tried."""


def main() -> None:
    torch.set_num_threads(1)
    arguments = _arguments()
    rows: list[dict[str, Any]] = []
    if arguments.ranks:
        rows = [_together(arguments.ranks)]
    else:
        for name, (route, codec) in SIDES.items():
            rows += [
                side(name, route, codec, world)
                for world in WORLDS
                if world <= MOST.get(name, WORLDS[-1])
            ]
    table(list(rows[0]), [list(row.values()) for row in rows])
    emit(arguments.json, {"rows": rows, "agreement": [agreement(world) for world in WORLDS]})


def _arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--ranks", type=int, default=0, help="fork so many real ranks instead")
    return made.parse_args()


def side(name: str, route: Route, codec: Codec, world: int) -> dict[str, Any]:
    """Return what a flight takes on one rank's side."""
    # A gathered packet goes to all others whole, so its bucket is a block.
    numel = BLOCK if isinstance(route, gather) else BLOCK * world
    spec = Spec((Part("w", (numel,), 0, "vector"),), 0, numel, torch.float32)
    rank, group = world // 2, tuple(range(world))
    state = route.init(codec, spec, RankContext(rank, group, 0, 0))
    seconds, messages, nbytes, hops = [], 0, 0, 0
    for step in range(STEPS + 1):
        x = torch.randn(numel)
        messages = nbytes = hops = 0
        took, reply = 0.0, None
        flight = route.carry(codec, x, spec, state, RankContext(rank, group, step, 0))
        while True:
            begun = time.thread_time()
            try:
                hop = flight.send(reply)
            except StopIteration:
                took += time.thread_time() - begun
                break
            took += time.thread_time() - begun
            hops += 1
            if isinstance(hop, AllReduce):
                reply = hop.tensor
                continue
            messages += sum(payload.numel() > 0 for _, payload in hop.send)
            nbytes += sum(payload.numel() for _, payload in hop.send)
            reply = _answered(hop)
        seconds.append(took)
    return {
        "route": name,
        "ranks": world,
        "first_ms": round(1e3 * seconds[0], 2),
        "flight_ms": round(1e3 * min(seconds[1:]), 2),
        "bound_ms": round(1 + 2e-3 * world, 2),
        "exchanges": hops,
        "messages": messages,
        "bytes": nbytes,
        "sockets_a_lane": needed(world, 1, route.partners(rank, world)),
    }


def _answered(hop: Exchange) -> dict[int, torch.Tensor]:
    """Answer an exchange as if all peers had sent what this rank sends; else zeros."""
    like = {payload.numel(): payload for _, payload in hop.send}
    return {
        rank: like[nbytes].clone() if nbytes in like else torch.zeros(nbytes, dtype=torch.uint8)
        for rank, nbytes in hop.recv
    }


def agreement(world: int, nbytes: int = 32) -> dict[str, int]:
    """Return the messages and bytes of all ranks that compare what they hold alike."""
    # head of a value: 8 and 4 bytes, one run of ranks of 8; each message after its length of 8
    by_tree = 2 * (world - 1)
    each_to_each = world * (world - 1)
    tree = world > DIRECTLY
    return {
        "ranks": world,
        "messages": 2 * (by_tree if tree else each_to_each),
        "bytes": by_tree * (8 + 20 + nbytes) if tree else each_to_each * (8 + nbytes),
        "bytes_each_to_each": each_to_each * (8 + nbytes),
    }


# -- real ranks
# --------------------------------------------------------------------------------------------------


def _together(world: int) -> dict[str, Any]:
    """Return what `world` ranks, forked from this process, take on this machine."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    pipes, ranks = [], []
    for rank in range(world):
        here, there = context.Pipe(duplex=False)
        ranks.append(context.Process(target=_rank, args=(rank, world, store.port, there)))
        ranks[-1].start()
        there.close()
        pipes.append(here)
    results = [json.loads(here.recv()) for here in pipes]
    for process in ranks:
        process.join(30)
        if process.is_alive():
            process.kill()

    def middle(name: str) -> float:
        return sorted(result[name] for result in results)[world // 2]

    if len({result["weights"] for result in results}) > 1:
        raise RuntimeError("ranks do not hold the same weights")
    names: Sequence[str] = ("attach_s", "step_ms", "check_ms", "sockets", "threads", "memory_mb")
    return {"ranks": world, **{name: round(middle(name), 2) for name in names}}


def _rank(rank: int, world: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # the default group is torch's own
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    before = len(os.listdir("/proc/self/fd"))
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    begun = time.monotonic()
    strategy = thinwire.Strategy(what=feedback(uniform(4)), how=two_shot())
    with thinwire.attach(model, optimizer, strategy) as sync:
        attached = time.monotonic()
        begun_steps = attached
        for step in range(STEPS + 1):
            if step == 1:  # the first one connects
                begun_steps = time.monotonic()
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
        stepped = time.monotonic()
        sync.check()
        checked = time.monotonic()
        results.send(
            json.dumps(
                {
                    "attach_s": attached - begun,
                    "step_ms": 1e3 * (stepped - begun_steps) / STEPS,
                    "check_ms": 1e3 * (checked - stepped),
                    "sockets": len(os.listdir("/proc/self/fd")) - before,
                    "threads": len(os.listdir("/proc/self/task")),
                    "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    "weights": float(
                        sum(param.detach().double().sum() for param in model.parameters())
                    ),
                }
            )
        )
    results.close()
    os._exit(0)


if __name__ == "__main__":
    main()
