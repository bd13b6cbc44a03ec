"""One rank's bytes to all: the same bytes on every rank, by the way that the formula says is
faster."""

import pytest
import torch

from tests.how.flights import contexts_of
from tests.wires import wires
from thinwire.core import Flight, Link
from thinwire.core.broadcast import broadcast, broadcast_seconds, segments_of
from thinwire.drive.local import run
from thinwire.drive.sim import simulate
from thinwire.net import LOCAL_NETWORK

SLOW = Link(1e-4, 12.5e6, 2e-5, waits=True)
FAR = Link(0.05, 125e6, waits=True)


def held(world: int, nbytes: int) -> list[torch.Tensor]:
    made = [torch.full((nbytes,), rank, dtype=torch.uint8) for rank in range(world)]
    made[0] = (
        torch.arange(nbytes, dtype=torch.int64)
        .mul_(2654435761)
        .bitwise_right_shift_(16)
        .to(torch.uint8)
    )
    return made


def flights(
    world: int, nbytes: int, link: Link, has: list[torch.Tensor]
) -> dict[int, Flight[torch.Tensor]]:
    return {rank: broadcast(has[rank], ctx, link) for rank, ctx in contexts_of(world).items()}


@pytest.mark.parametrize(
    "link", [SLOW, FAR, LOCAL_NETWORK.between(0, 1)], ids=["slow", "far", "local"]
)
@pytest.mark.parametrize("world", range(1, 10))
def test_every_rank_ends_with_the_first_ones_bytes(world: int, link: Link) -> None:
    for nbytes in (0, 1, 7, 300_001, 2_000_000):
        has = held(world, nbytes)
        first = has[0].clone()
        sent: dict[int, float] = {}
        run(flights(world, nbytes, link, has), sent)
        assert all(torch.equal(each, first) for each in has)
        most = (
            nbytes if segments_of(nbytes, world, link) else 2 * nbytes + world
        )  # shares are rounded
        assert max(sent.values()) <= most


def test_both_ways_are_taken() -> None:
    assert segments_of(1000, 8, SLOW) == 0
    assert segments_of(25_000_000, 8, SLOW) > 8
    assert segments_of(25_000_000, 2, SLOW) == 1
    assert segments_of(1_000_000, 8, FAR) == 0


@pytest.mark.parametrize("world", [2, 3, 4, 8, 9])
def test_seconds_of_a_chain_are_the_simulators(world: int) -> None:
    nbytes = 2_000_000
    segments = segments_of(nbytes, world, SLOW)
    assert segments
    told = simulate(flights(world, nbytes, SLOW, held(world, nbytes)), *wires(SLOW))
    assert told.seconds == pytest.approx(broadcast_seconds(nbytes, world, SLOW, segments), rel=0.01)
    assert told.seconds < 1.4 * nbytes / SLOW.rate_bytes_per_s
    assert sum(told.messages.values()) == segments * (world - 1)


@pytest.mark.parametrize("world", [3, 8])
def test_seconds_of_a_scattered_one_are_near_its_formula(world: int) -> None:
    told = simulate(flights(world, 1000, SLOW, held(world, 1000)), *wires(SLOW))
    assert 0.7 < told.seconds / broadcast_seconds(1000, world, SLOW, 0) < 1.6
