"""A rank that is missing, or says something else than it announced: told, with what was expected,
and nobody hangs."""

from typing import Any

import pytest
import torch

from tests.how.flights import bucket, launch, values
from thinwire.core import Exchange, Flight, Hop, Outcome, Route
from thinwire.drive.local import run
from thinwire.errors import FlightError, PayloadError
from thinwire.how import gossip, halving_doubling, ring, server, torus, tree, two_shot
from thinwire.testing.rounds import relayed
from thinwire.what import entropy, identity, uniform

ROUTES = [
    ring(),
    tree(2),
    halving_doubling(),
    torus(2, 2),
    server((1, 2)),
    two_shot(),
    gossip("ring"),
]
DATA_SIZED = entropy(uniform(4))


def lying(flight: Flight[Outcome], lie: Any) -> Flight[Outcome]:
    """The same flight, whose first message is what `lie` makes of it."""
    told = False

    def through(hop: Hop) -> Hop:
        nonlocal told
        if (
            isinstance(hop, Exchange)
            and not told
            and any(payload.numel() for _, payload in hop.send)
        ):
            (to, payload), *others = hop.send
            told = True
            return Exchange(((to, lie(payload)), *others), hop.recv)
        return hop

    return relayed(flight, through)


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_a_missing_rank_is_told(route: Route) -> None:
    flights = launch(route, identity(), values(4, bucket()), bucket())
    del flights[2]
    with pytest.raises(
        FlightError, match=r"no rank can go on: .*waits in an exchange, for .*bytes from rank"
    ):
        run(flights)


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_a_length_that_no_payload_can_have_is_told(route: Route) -> None:
    flights = launch(route, DATA_SIZED, values(4, bucket()), bucket())
    flights[3] = lying(flights[3], lambda payload: torch.full_like(payload, 0x7F))
    with pytest.raises(
        PayloadError, match=r"rank 3 announces \d+ bytes where entropy.* sends at most \d+"
    ):
        run(flights)


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_a_payload_that_is_shorter_than_was_due_is_told(route: Route) -> None:
    flights = launch(route, identity(), values(4, bucket()), bucket())
    flights[3] = lying(flights[3], lambda payload: payload[:-4])
    with pytest.raises(FlightError, match=r"expects \d+ bytes from rank 3 and \d+ came"):
        run(flights)


@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_a_length_that_contradicts_its_payload_is_told(route: Route) -> None:
    """One byte fewer is announced than is sent."""

    def less(payload: torch.Tensor) -> torch.Tensor:
        lengths = payload.clone().view(torch.int64)
        lengths[0] -= 1
        return lengths.view(torch.uint8)

    flights = launch(route, DATA_SIZED, values(4, bucket()), bucket())
    flights[3] = lying(flights[3], less)
    with pytest.raises(FlightError, match=r"expects \d+ bytes from rank 3 and \d+ came"):
        run(flights)
