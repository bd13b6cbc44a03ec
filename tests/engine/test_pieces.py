"""Lanes and slices that the link asks for: reckoned as the simulator has it, agreed on, and told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thinwire
from tests.engine.models import mlp
from tests.how.flights import launch, values
from tests.ranks import run_ranks
from thinwire.core import Codec, Link, Route, Seat, Spec
from thinwire.drive.sim import Launch, Wires, simulate
from thinwire.engine.buckets import spans
from thinwire.engine.pieces import COUNTS, SIZES, chosen
from thinwire.errors import AttachError
from thinwire.how import direct, gather, native, two_shot
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, lowrank, sign, topk, uniform

WORLD = 3
SEAT = Seat(0, tuple(range(WORLD)), 0, 0)
MODEL = [Spec((), 0, numel, torch.float32) for numel in (60_000, 300_000, 200_000)]
SMALL = (None, 1 << 19, 1 << 18)  # bytes of slices


def simulated(codec: Codec, route: Route, link: Link, lanes: int, size: int | None) -> float:
    """Seconds of the model's flights on simulated wires."""
    flights = [Launch(launch(route, codec, values(WORLD, span), span)) for spec in MODEL for span in spans(spec, size, codec)]
    return simulate([flights[lane::lanes] for lane in range(min(lanes, len(flights)))], Wires(link)).seconds


@settings(max_examples=20, deadline=None)
@given(
    latency=st.sampled_from((0.0, 1e-4, 1e-3, 0.02, 0.1)),
    rate=st.sampled_from((1e6, 1e7, 1e8)),
    waits=st.booleans(),
    how=st.sampled_from(((identity(), direct()), (uniform(4), two_shot()), (sign(), gather()), (identity(), native()))),
)
def test_the_choice_is_near_the_best_that_the_simulator_finds(latency: float, rate: float, waits: bool, how: tuple[Codec, Route]) -> None:
    codec, route = how
    link = Link(latency, rate, 1e-5, None, waits=waits)
    route = route.settle(WORLD, link)
    found = chosen(MODEL, codec, route, SEAT, link, 0.0, COUNTS, SMALL)
    best = min(simulated(codec, route, link, lanes, size) for lanes in COUNTS for size in SMALL)
    assert simulated(codec, route, link, found.lanes, found.slice_bytes) <= 1.35 * best


def test_a_codec_that_takes_its_time_is_hidden_behind_other_slices() -> None:
    link = Link(1e-5, 1e8)
    free, slow = (chosen(MODEL, uniform(4), two_shot(), SEAT, link, codec_s, COUNTS, SMALL) for codec_s in (0.0, 2e-8))
    assert (free.lanes, free.slice_bytes) == (1, None)
    assert slow.lanes > 1
    assert slow.slice_bytes is not None


def test_a_codec_that_wants_whole_buckets_is_not_cut() -> None:
    found = chosen(MODEL, lowrank(2), two_shot(), SEAT, Link(0.01, 1e6), 1e-7, COUNTS, SIZES)
    assert found.slice_bytes is None
    assert found.lanes > 1


def test_on_a_long_link_all_lanes_carry_alike() -> None:
    large = [Spec((), 0, 50 * spec.numel, torch.float32) for spec in MODEL]
    found = chosen(large, identity(), direct(), SEAT, Link(0.05, 1e7, waits=True), 0.0, COUNTS, SIZES)
    assert found.lanes == COUNTS[-1]
    cut = [span.numel for spec in large for span in spans(spec, found.slice_bytes, identity())]
    carried = [sum(cut[lane :: found.lanes]) for lane in range(found.lanes)]
    assert max(carried) < 1.5 * sum(cut) / found.lanes
    assert f"lanes={found.lanes}" in found.said
    assert "lanes=1, slice_bytes=None" in found.said


def attached(rank: int, strategy: Strategy, **options: object) -> tuple[str, str, list[torch.Tensor]]:
    """What the report tells of lanes and slices, of routes, and the weights after some steps."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=1000, **options) as sync:  # type: ignore[arg-type]
        for step in range(3):
            model(
                torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(10 * step + rank))
            ).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        report = sync.report()
    assert report.pieces in str(report)
    return report.pieces, report.rows[0].route, [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("what", [identity(), feedback(uniform(4)), topk(0.1), lowrank(1)], ids=repr)
def test_ranks_agree_and_train_as_with_the_same_pieces_given(what: Codec) -> None:
    strategy = Strategy(what=what, how=gather())
    told = run_ranks(2, attached, strategy, timeout=120)
    chose = run_ranks(2, auto, strategy, timeout=120)
    assert {said for said, *_ in told} == {""}
    assert len({said for said, *_ in chose}) == 1
    assert "lanes=" in chose[0][0]
    assert "by a link of" in chose[0][0]
    if "slice_bytes=None" in chose[0][0].partition(":")[0]:
        for (*_, one), (*_, other) in zip(told, chose, strict=True):
            assert all(map(torch.equal, one, other))


def auto(rank: int, strategy: Strategy) -> tuple[str, str, list[torch.Tensor]]:
    return attached(rank, strategy, lanes="auto", slice_bytes="auto")


def test_one_rank_has_one_lane() -> None:
    assert attached(0, Strategy(), lanes="auto", slice_bytes="auto")[0] == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"lanes": "many"}, "lanes='many': at least 1, or 'auto'"), ({"slice_bytes": 0}, "at least 1, or None, or 'auto'")],
)
def test_what_is_no_number_of_lanes_or_bytes(options: dict[str, object], reason: str) -> None:
    with pytest.raises(AttachError, match=reason):
        attached(0, Strategy(), **options)
