"""Lanes and slices that the link asks for: reckoned as the simulator has it, agreed on, and
told."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import thinwire
from tests.engine.models import mlp
from tests.how.flights import launch, values
from tests.ranks import run_ranks
from tests.threads import on_threads
from tests.wires import wires
from thinwire.core import Codec, Driver, Link, RankContext, Route, Spec
from thinwire.drive.local import Fabric
from thinwire.drive.sim import Launch, simulate
from thinwire.engine import probe
from thinwire.engine.buckets import build, plan, spans
from thinwire.engine.lane_plan import COUNTS, SIZES, chosen
from thinwire.errors import AttachError
from thinwire.how import direct, gather, native, two_shot
from thinwire.on import deltas, gradients
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, lowrank, sign, topk, uniform
from thinwire.when import every, staggered, warmup

WORLD = 3
SEAT = RankContext(0, tuple(range(WORLD)), 0, 0)
MODEL = [Spec((), 0, numel, torch.float32) for numel in (60_000, 300_000, 200_000)]
SMALL = (None, 1 << 19, 1 << 18)  # bytes of slices


def simulated(codec: Codec, route: Route, link: Link, lanes: int, size: int | None) -> float:
    """Seconds of the model's flights on simulated wires."""
    flights = [
        Launch(launch(route, codec, values(WORLD, span), span))
        for spec in MODEL
        for span in spans(spec, size, codec)
    ]
    return simulate(
        [flights[lane::lanes] for lane in range(min(lanes, len(flights)))], *wires(link)
    ).seconds


@settings(max_examples=8, deadline=None)
@given(
    latency=st.sampled_from((0.0, 1e-4, 1e-3, 0.02, 0.1)),
    rate=st.sampled_from((1e6, 1e7, 1e8)),
    waits=st.booleans(),
    windowed=st.booleans(),
    how=st.sampled_from(
        (
            (identity(), direct()),
            (uniform(4), two_shot()),
            (sign(), gather()),
            (identity(), native()),
        )
    ),
)
def test_the_choice_is_near_the_best_that_the_simulator_finds(
    latency: float, rate: float, waits: bool, windowed: bool, how: tuple[Codec, Route]
) -> None:
    codec, route = how
    link = Link(latency, rate, 1e-5, 1 << 16 if windowed else None, waits=waits)
    route = route.bind(WORLD, link)
    choice = chosen([MODEL], codec, route, SEAT, link, 0.0, COUNTS, SMALL)
    best = min(simulated(codec, route, link, lanes, size) for lanes in COUNTS for size in SMALL)
    assert simulated(codec, route, link, choice.lanes, choice.slice_bytes) <= 1.35 * best


def test_a_codec_that_takes_its_time_is_hidden_behind_other_slices() -> None:
    link = Link(1e-5, 1e8)
    free, slow = (
        chosen([MODEL], uniform(4), two_shot(), SEAT, link, codec_s, COUNTS, SMALL)
        for codec_s in (0.0, 2e-8)
    )
    assert (free.lanes, free.slice_bytes) == (1, None)
    assert slow.lanes > 1
    assert slow.slice_bytes is not None


def test_a_codec_that_wants_whole_buckets_is_not_cut() -> None:
    choice = chosen([MODEL], lowrank(2), two_shot(), SEAT, Link(0.01, 1e6), 1e-7, COUNTS, SIZES)
    assert choice.slice_bytes is None
    assert choice.lanes > 1


def test_on_a_long_link_all_lanes_carry_alike() -> None:
    large = [Spec((), 0, 50 * spec.numel, torch.float32) for spec in MODEL]
    choice = chosen(
        [large], identity(), direct(), SEAT, Link(0.05, 1e7, waits=True), 0.0, COUNTS, SIZES
    )
    assert choice.lanes == COUNTS[-1]
    cut = [span.numel for spec in large for span in spans(spec, choice.slice_bytes, identity())]
    carried = [sum(cut[lane :: choice.lanes]) for lane in range(choice.lanes)]
    assert max(carried) < 1.5 * sum(cut) / choice.lanes
    assert f"lanes={choice.lanes}" in choice.reason
    assert "lanes=1, slice_bytes=None" in choice.reason


def test_a_window_is_a_wait_and_the_wire_is_as_busy_as_without_one() -> None:
    large = [Spec((), 0, 64 << 20, torch.float32)] * 8
    ctx = RankContext(0, (0, 1, 2, 3), 0, 0)
    choice = chosen(
        [large], identity(), native(), ctx, Link(0.01, 125e6, 0.0, 2 << 20), 0.0, COUNTS, SIZES
    )
    seconds = float(choice.reason.partition("flights, ")[2].partition(" s")[0])
    assert seconds >= 8 * 1.5 * 4 * (64 << 20) / 125e6


def test_fragments_are_reckoned_and_laid_out_by_themselves() -> None:
    together, apart = [MODEL * 4], [[spec] for spec in MODEL * 4]
    link = Link(0.01, 1e7)
    assert chosen(together, uniform(4), two_shot(), SEAT, link, 0.0, COUNTS, (None,)).lanes > 1
    assert chosen(apart, uniform(4), two_shot(), SEAT, link, 0.0, COUNTS, (None,)).lanes == 1
    model = mlp(depth=6)
    strategy = Strategy(staggered(2, every(4)), uniform(4), two_shot(), deltas())
    planned = plan(model, 1000, strategy.when, wide=True)
    build(planned, strategy, strategy.how, Fabric(1).driver(0, 2), 2, None, 0)
    for fragment in range(2):
        assert {part.lane for bucket in planned[fragment::2] for part in bucket.slices} == {0, 1}


def test_a_route_without_a_formula_is_refused() -> None:
    class plain(direct):
        def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
            return Route.seconds(self, codec, spec, ctx, link)

    with pytest.raises(AttachError, match="gives no formula of its seconds"):
        chosen([MODEL], identity(), plain(), SEAT, Link(0.01, 1e6), 0.0, COUNTS, SIZES)


@pytest.mark.parametrize(
    "options",
    [
        {"lanes": "auto", "slice_bytes": "auto"},
        {"lanes": 3, "slice_bytes": "auto"},
        {"lanes": "auto", "slice_bytes": 1 << 18},
    ],
    ids=str,
)
@pytest.mark.parametrize("what", [identity(), feedback(topk(0.1))], ids=repr)
def test_what_was_chosen_trains_as_the_same_said_by_hand(
    what: Codec, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense steps of a warm-up, too: lanes and slices alone leave their route as it is."""
    monkeypatch.setattr(probe, "measured", lambda *_: wires(Link(1e-5, 1e8))[0])
    monkeypatch.setattr(
        sys.modules["thinwire.engine.bound"], "measured_codec", lambda *_: 1e-6
    )  # so that slices are worth it
    strategy = Strategy(
        warmup(2, every(1)), what, direct() if what == identity() else gather(), gradients()
    )

    torch.manual_seed(0)
    start = nn.Linear(700, 700)

    def work(driver: Driver, **given: Any) -> tuple[str, list[torch.Tensor]]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, strategy, driver=driver, **given) as sync:
            for step in range(4):
                x = torch.randn(
                    4, 700, generator=torch.Generator().manual_seed(10 * step + driver.rank)
                )
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            return sync.report().lane_plan, [param.detach() for param in model.parameters()]

    lanes = options["lanes"] if options["lanes"] != "auto" else COUNTS[-1]
    chose = on_threads(2, lambda driver: work(driver, **options), lanes=lanes)
    assert "lanes=" in chose[0][0]
    assert chose[0][0] == chose[1][0]
    count, size = (word.partition("=")[2] for word in chose[0][0].partition(":")[0].split(", "))
    assert int(count) > 1
    assert int(size) < 4 * 700 * 700
    hand = on_threads(
        2, lambda driver: work(driver, lanes=int(count), slice_bytes=int(size)), lanes=int(count)
    )
    for rank in range(2):
        assert all(map(torch.equal, chose[rank][1], hand[rank][1]))


def attached(
    rank: int, strategy: Strategy, **options: object
) -> tuple[str, str, list[torch.Tensor]]:
    """What the report tells of lanes and slices, of routes, and the weights after some steps."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=1000, **options) as sync:  # type: ignore[arg-type]
        for step in range(3):
            model(
                torch.randn(
                    4,
                    model[0].in_features,
                    generator=torch.Generator().manual_seed(10 * step + rank),
                )
            ).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        report = sync.report()
    assert report.lane_plan in str(report)
    return report.lane_plan, report.rows[0].route, [param.detach() for param in model.parameters()]


@pytest.mark.parametrize(
    "what", [identity(), feedback(uniform(4)), topk(0.1), lowrank(1)], ids=repr
)
def test_ranks_agree_and_train_as_with_the_same_pieces_given(what: Codec) -> None:
    strategy = Strategy(what=what, how=gather())
    told = run_ranks(2, attached, strategy, timeout=120)
    chose = run_ranks(2, auto, strategy, timeout=120)
    assert {said for said, *_ in told} == {""}
    assert len({said for said, *_ in chose}) == 1
    assert "lanes=" in chose[0][0]
    assert "by a link of" in chose[0][0]
    for (*_, one), (*_, other) in zip(told, chose, strict=True):
        assert all(map(torch.equal, one, other))  # a model too small to cut


def auto(rank: int, strategy: Strategy) -> tuple[str, str, list[torch.Tensor]]:
    return attached(rank, strategy, lanes="auto", slice_bytes="auto")


def test_one_rank_has_one_lane() -> None:
    assert attached(0, Strategy(), lanes="auto", slice_bytes="auto")[0] == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lanes": "many"}, "lanes='many': at least 1, or 'auto'"),
        ({"slice_bytes": 0}, "at least 1, or None, or 'auto'"),
    ],
)
def test_what_is_no_number_of_lanes_or_bytes(options: dict[str, object], reason: str) -> None:
    with pytest.raises(AttachError, match=reason):
        attached(0, Strategy(), **options)
