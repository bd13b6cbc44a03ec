"""Every route over gloo, between processes: the same bits and bytes as in one process, and nobody
waits for ever."""

import hashlib
import time
from datetime import timedelta
from itertools import pairwise

import pytest
import torch

from tests.how.flights import bucket, launch, values
from tests.ranks import run_ranks
from thinwire.core import Codec, Exchange, Flight, Outcome, Route, Spec
from thinwire.drive.local import run
from thinwire.drive.torch import TorchDriver
from thinwire.how import (
    auto,
    checked,
    direct,
    gather,
    gossip,
    halving_doubling,
    hierarchical,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.what import entropy, feedback, identity, uniform

OURS = auto(
    losses=9, routes=(gather(), direct(), two_shot(), tree(2))
)  # not native: gloo adds in an order of its own
ROUTES: dict[int, list[Route]] = {
    5: [
        direct(),
        ring(),
        tree(3),
        halving_doubling(),
        torus(1, 5),
        server((1, 4)),
        server((0, 1, 2)),
        gossip("ring"),
        gossip(),
        OURS,
        checked(two_shot(slot_bytes=0)),
    ],
    6: [
        torus(3, 2),
        tree(1),
        server((3, 2)),
        hierarchical((ring(), identity()), hierarchical((direct(), identity()), tree(2), 1), 3),
    ],
}
CODECS: list[Codec] = [identity(), feedback(uniform(4)), entropy(uniform(4))]
SIZES = (10_080, 60_000, 3, 0)


def pairs(world: int) -> list[tuple[Route, Codec, Spec]]:
    return [
        (route, codec, bucket(n))
        for route in ROUTES[world]
        for codec in CODECS
        for n in SIZES
        if route.refuses(codec) is None
    ]


def told(total: torch.Tensor, sent: float) -> tuple[str, float]:
    return hashlib.sha256(total.numpy().tobytes()).hexdigest(), sent


def over_gloo(rank: int, world: int) -> list[tuple[str, float]]:
    driver = TorchDriver(None, lanes=2, timeout=timedelta(seconds=60), device=torch.device("cpu"))
    found = []
    try:
        driver.prepare(())
        handles = []
        for lane, (route, codec, spec) in enumerate(pairs(world)):  # side by side on two lanes
            handles.append(
                driver.start(
                    launch(route, codec, values(world, spec), spec)[rank],
                    lane % 2,
                    f"{route!r} {codec!r}",
                )
            )
        for handle in handles:
            total = handle.wait().total
            found.append(told(total, handle.sent_bytes))
    finally:
        driver.close()
    return found


@pytest.mark.parametrize("world", ROUTES)
def test_every_route_carries_the_same_bits_between_processes(world: int) -> None:
    here: list[list[tuple[str, float]]] = [[] for _ in range(world)]
    for route, codec, spec in pairs(world):
        sent: dict[int, float] = {}
        outcomes = run(launch(route, codec, values(world, spec), spec), sent)
        for rank in range(world):
            here[rank].append(told(outcomes[rank].total, sent[rank]))
    for rank, heard in enumerate(run_ranks(world, over_gloo, world)):
        differ = [
            pair[:2]
            for pair, one, other in zip(pairs(world), here[rank], heard, strict=True)
            if one != other
        ]
        assert not differ, f"rank {rank}"


def computing(rank: int) -> list[tuple[float, float]]:
    """When the flights of three lanes computed, and slept on it."""
    driver = TorchDriver(None, lanes=3, timeout=timedelta(seconds=60), device=torch.device("cpu"))
    spans: list[tuple[float, float]] = []

    def flight() -> Flight[Outcome]:
        for _ in range(4):
            begun = time.perf_counter()
            time.sleep(0.01)
            spans.append((begun, time.perf_counter()))
            yield Exchange(((1 - rank, torch.zeros(8, dtype=torch.uint8)),), ((1 - rank, 8),))
        return Outcome(torch.zeros(1))

    try:
        driver.prepare(())
        for handle in [driver.start(flight(), lane, f"lane {lane}") for lane in range(3)]:
            handle.wait()
    finally:
        driver.close()
    return spans


def test_lanes_compute_in_turns() -> None:
    for spans in run_ranks(2, computing):
        ordered = sorted(spans)
        assert len(ordered) == 12
        assert all(end <= begun for (_, end), (begun, _) in pairwise(ordered))
