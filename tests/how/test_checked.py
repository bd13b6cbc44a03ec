"""A checksum behind each message: the same sums, and no changed bit gets through."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.how.flights import bucket, contexts_of, launch, values
from tests.ranks import run_ranks
from tests.wires import wires
from thinwire.core import Codec, Exchange, Flight, Hop, Link, Outcome, Part, Route, Spec
from thinwire.drive.local import run
from thinwire.drive.sim import simulate
from thinwire.drive.torch import TorchDriver
from thinwire.errors import FlightError, PayloadError, StrategyError
from thinwire.how import (
    auto,
    checked,
    direct,
    gather,
    gossip,
    halving_doubling,
    hierarchical,
    native,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.how.checked import crc
from thinwire.on import gradients, parameters
from thinwire.strategy import Strategy
from thinwire.testing import check_route
from thinwire.testing.rounds import relayed
from thinwire.what import entropy, feedback, identity, lowrank, topk, uniform

LEVELS = hierarchical((direct(), identity()), two_shot(), 2)
ROUTES: list[Route] = [
    *(
        gather(),
        direct(),
        direct(slot_bytes=0),
        two_shot(back=feedback(uniform(8))),
        ring(),
        tree(2),
        halving_doubling(),
        torus(2, 2),
    ),
    *(server((1, 2)), gossip("ring"), LEVELS, auto(routes=(gather(), two_shot()))),
]
CODECS: list[Codec] = [identity(), uniform(4, block=32), entropy(uniform(4, block=32))]


@pytest.mark.parametrize("codec", [identity(), feedback(topk(0.1)), lowrank(2)], ids=repr)
@pytest.mark.parametrize(
    "route", [checked(gather()), checked(two_shot()), checked(gossip())], ids=repr
)
def test_laws(route: Route, codec: Codec) -> None:
    if route.refuses(codec) is None:
        check_route(route, codec, worlds=(1, 2, 5))


@pytest.mark.parametrize(
    ("route", "codec"),
    [(route, codec) for route in ROUTES for codec in CODECS if not route.refuses(codec)],
    ids=repr,
)
def test_the_sums_are_the_routes_own_and_four_bytes_go_with_each_message(
    route: Route, codec: Codec
) -> None:
    spec, xs = bucket(998), values(4, bucket(998))
    bare = simulate(launch(route, codec, xs, spec), *wires(Link(0.0, 1e9)))
    sealed = simulate(launch(checked(route), codec, xs, spec), *wires(Link(0.0, 1e9)))
    for rank in range(4):
        assert torch.equal(bare.outcome[rank].total, sealed.outcome[rank].total)
        assert sealed.sent_bytes[rank] == bare.sent_bytes[rank] + 4 * bare.messages[rank]
        assert sealed.messages[rank] == bare.messages[rank]


class Noise:
    """Turns over one bit of the n-th message that is not empty, whoever sends it."""

    def __init__(self, message: int, bit: float) -> None:
        self.message, self.bit, self.turned = message, bit, 0

    def on(self, flight: Flight[Outcome]) -> Flight[Outcome]:
        return relayed(flight, self._hop)

    def _hop(self, hop: Hop) -> Hop:
        assert isinstance(hop, Exchange)
        return Exchange(tuple((to, self._payload(payload)) for to, payload in hop.send), hop.recv)

    def _payload(self, payload: torch.Tensor) -> torch.Tensor:
        if not payload.numel():
            return payload
        self.message -= 1
        if self.message != -1:
            return payload
        at = min(int(self.bit * 8 * payload.numel()), 8 * payload.numel() - 1)
        changed = payload.clone()
        changed[at // 8] ^= 1 << at % 8
        self.turned += 1
        return changed


@settings(max_examples=80, deadline=None)
@given(
    route=st.sampled_from(ROUTES),
    codec=st.sampled_from(CODECS),
    message=st.integers(0, 30),
    bit=st.floats(0, 1, exclude_max=True),
)
def test_any_bit_that_is_turned_over_is_found(
    route: Route, codec: Codec, message: int, bit: float
) -> None:
    if route.refuses(codec):
        return
    noise, spec = Noise(message, bit), bucket(600)
    flights = launch(checked(route), codec, values(4, spec), spec, step=7)
    try:
        run({rank: noise.on(flight) for rank, flight in flights.items()})
        told = ""
    except PayloadError as error:
        told = str(error)
    assert bool(told) == bool(noise.turned)
    assert not told or ("step 7, values 0 to 600 (from 'w')" in told and "came corrupted" in told)


def test_without_it_a_turned_bit_gets_through() -> None:
    """So that the test above can fail."""
    noise, spec = Noise(0, 0.3), bucket(600)
    run(
        {
            rank: noise.on(flight)
            for rank, flight in launch(direct(), identity(), values(4, spec), spec).items()
        }
    )
    assert noise.turned


def test_it_says_who_heard_what_from_whom() -> None:
    spec = Spec((Part("layer.weight", (600,), 0, "vector"),), 0, 600, torch.float32).span(200, 500)
    route, noise = checked(direct()), Noise(0, 0.0)
    flights = launch(route, identity(), values(3, spec), spec, step=12)
    flights[2] = noise.on(flights[2])
    want = (
        r"rank 0, step 12, values 200 to 500 \(from 'layer.weight'\), over direct.*: 400 bytes "
        r"from rank 2 came corrupted"
    )
    with pytest.raises(PayloadError, match=want):
        run(flights)


def over_gloo(rank: int) -> str:
    driver = TorchDriver(None, lanes=1, timeout=timedelta(seconds=3), device=torch.device("cpu"))
    try:
        driver.prepare(())
        spec = bucket(600)
        flight = launch(checked(ring()), identity(), values(3, spec), spec, step=3)[rank]
        handle = driver.start(
            Noise(0, 0.5).on(flight) if rank == 1 else flight, 0, "step 3, bucket 0"
        )
        try:
            handle.wait()
        except (PayloadError, FlightError) as error:
            return f"{type(error).__name__}: {error}"
        return "landed"
    finally:
        driver.abandon()


def test_every_rank_hears_of_it_over_gloo() -> None:
    told = run_ranks(3, over_gloo)
    assert "rank 2, step 3" in told[2]
    assert "from rank 1 came corrupted" in told[2]
    assert all("Error" in each for each in told), told


@pytest.mark.parametrize(
    "route",
    [
        native(),
        hierarchical(native(), two_shot(), 2),
        auto(),
        hierarchical((direct(), identity()), native(), 2),
    ],
)
def test_what_the_transport_adds_is_refused(route: Route) -> None:
    with pytest.raises(StrategyError, match=r"the transport adds up by itself there.*\. Use"):
        checked(route)


def test_twice_is_refused() -> None:
    with pytest.raises(StrategyError, match="it is checked already"):
        checked(checked(ring()))


def test_other_devices_are_refused() -> None:
    spec, ctx = bucket(8), contexts_of(2)[0]
    state = ring().init(identity(), spec, ctx)
    flight: Any = checked(ring()).carry(identity(), torch.empty(8, device="meta"), spec, state, ctx)
    with pytest.raises(StrategyError, match="reads each payload on the CPU, and these are on meta"):
        next(flight)


def test_it_is_a_row_of_a_strategy() -> None:
    strategy = Strategy(what=uniform(4), how=checked(two_shot()))
    assert Strategy.from_toml(strategy.to_toml()) == strategy
    with pytest.raises(StrategyError, match="would differ from rank to rank"):
        Strategy(how=checked(gossip()), on=gradients())
    assert not Strategy(how=checked(gossip()), on=parameters()).compares


def test_the_checksum_is_the_standards() -> None:
    assert crc(torch.tensor(list(b"123456789"), dtype=torch.uint8)) == 0xCBF43926
