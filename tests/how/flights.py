"""Flights of all ranks for the tests of routes: a bucket that every world divides, and what a route
does with it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thinwire.core import Codec, Exchange, Flight, Hop, Outcome, Part, RankContext, Route, Spec
from thinwire.drive.local import run
from thinwire.testing.rounds import relayed

EVEN = 2 * 5040  # 1 to 10, 12, 14, 15, 16 and more divide it


def bucket(numel: int = EVEN) -> Spec:
    return Spec((Part("w", (numel,), 0, "vector"),), 0, numel, torch.float32)


def values(world: int, spec: Spec, seed: int = 0) -> dict[int, Tensor]:
    return {
        rank: torch.randn(spec.numel, generator=torch.Generator().manual_seed(100 * seed + rank))
        for rank in range(world)
    }


def contexts_of(world: int, step: int = 0) -> dict[int, RankContext]:
    return {rank: RankContext(rank, tuple(range(world)), step, 0) for rank in range(world)}


def launch(
    route: Route, codec: Codec, xs: Mapping[int, Tensor], spec: Spec, step: int = 0
) -> dict[int, Flight[Outcome]]:
    """Fresh flights of all ranks."""
    at = contexts_of(len(xs), step)
    return {
        rank: route.carry(codec, x.clone(), spec, route.init(codec, spec, at[rank]), at[rank])
        for rank, x in xs.items()
    }


def fly(route: Route, codec: Codec, world: int, spec: Spec | None = None) -> dict[int, Outcome]:
    spec = spec or bucket()
    return run(launch(route, codec, values(world, spec), spec))


def watched(flight: Flight[Outcome], look: Callable[[Any], None]) -> Flight[Outcome]:
    """The same flight; `look` sees each hop."""

    def through(hop: Hop) -> Hop:
        look(hop)
        return hop

    return relayed(flight, through)


def partners(route: Route, codec: Codec, world: int) -> dict[int, set[int]]:
    """Whom each rank sends to."""
    told: dict[int, set[int]] = {rank: set() for rank in range(world)}
    spec = bucket()

    def look(rank: int) -> Callable[[Any], None]:
        return lambda hop: (
            told[rank].update(to for to, payload in hop.send if payload.numel())
            if isinstance(hop, Exchange)
            else None
        )

    flights = launch(route, codec, values(world, spec), spec)
    run({rank: watched(flight, look(rank)) for rank, flight in flights.items()})
    return told
