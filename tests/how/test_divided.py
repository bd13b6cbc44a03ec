"""Spans that are encoded at once send the bytes, and end in the bits, of spans encoded one by
one."""

from collections.abc import Iterator

import pytest
import torch

from thinwire.core import Codec, Exchange, Flight, Outcome, Part, RankContext, Route, Spec
from thinwire.drive.local import run
from thinwire.how import (
    _plan,
    direct,
    halving_doubling,
    hierarchical,
    native,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.how._divided import Cut, Step
from thinwire.how._moves import Message, Move
from thinwire.how._plans import Plans
from thinwire.what import cast, feedback, identity, sign, uniform

STEPS = 3
Sent = list[tuple[int, int, bytes]]


def spec_of(numel: int, dtype: torch.dtype = torch.float32) -> Spec:
    half = numel // 2
    parts = (Part("a", (half,), 0, "vector"), Part("b", (numel - half,), half, "vector"))
    return Spec(parts, 0, numel, dtype)


def noted(flight: Flight[Outcome], rank: int, sent: Sent) -> Iterator[Exchange]:
    """Note what a flight sends, in order."""
    reply = None
    while True:
        try:
            hop = flight.send(reply)
        except StopIteration as stop:
            return stop.value
        if isinstance(hop, Exchange):
            sent += [(rank, to, bytes(each.numpy())) for to, each in hop.send if each.numel()]
        reply = yield hop


def flown(route: Route, codec: Codec, spec: Spec, world: int) -> tuple[Sent, list[torch.Tensor]]:
    """Return all messages of some flights on one state, and each rank's totals and sums."""
    sent: Sent = []
    ends: list[torch.Tensor] = []
    group = tuple(range(world))
    states = {r: route.init(codec, spec, RankContext(r, group, 0, 7)) for r in group}
    for step in range(STEPS):
        flights = {}
        for rank in group:
            torch.manual_seed(100 * step + rank)
            x = torch.randn(spec.numel).to(spec.dtype)
            ctx = RankContext(rank, group, step, 7)
            flights[rank] = noted(route.carry(codec, x, spec, states[rank], ctx), rank, sent)
        for outcome in run(flights).values():
            ends += [outcome.total.clone(), *([outcome.sent()] if outcome.sent else [])]
    return sent, ends


@pytest.mark.parametrize(
    "codec",
    [
        uniform(4, block=32),
        uniform(2, block=16, grid="rise"),
        sign(block=24),
        cast(),
        identity(),
        feedback(uniform(4, block=32), store="bf16"),
        feedback(sign(block=32), decay=0.9),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "route",
    [
        two_shot(),
        two_shot(back=feedback(uniform(8, block=16))),
        two_shot(slot_bytes=1),
        direct(),
        ring(),
        halving_doubling(),
        tree(3),
        torus(3, 2),
        server((1, 0)),
        hierarchical(native(), two_shot(), node=2),
    ],
    ids=repr,
)
def test_messages_and_sums_are_the_same_bits(
    route: Route, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route.refuses(codec):
        pytest.skip("the route refuses the codec")
    for numel, dtype in ((1000, torch.float32), (40, torch.bfloat16), (700, torch.float64)):
        spec = spec_of(numel, dtype)
        monkeypatch.setattr(_plan, "_PLANS", Plans(1 << 20))
        monkeypatch.setattr(_plan, "DIVIDED_BYTES", 1 << 17)
        at_once = flown(route, codec, spec, 6)
        monkeypatch.setattr(_plan, "_PLANS", Plans(1 << 20))
        monkeypatch.setattr(_plan, "DIVIDED_BYTES", -1)
        one_by_one = flown(route, codec, spec, 6)
        assert at_once[0] == one_by_one[0]
        for here, there in zip(at_once[1], one_by_one[1], strict=True):
            assert here.dtype == there.dtype
            assert here.view(torch.uint8).equal(there.view(torch.uint8))


def test_one_state_serves_all_spans_and_no_other_codec_is_encoded_at_once() -> None:
    spec, ctx = spec_of(1000), RankContext(1, (0, 1, 2), 0, 0)
    for codec, children in ((feedback(uniform(4, block=32)), 1), (feedback(uniform(4, 0)), 3)):
        assert len(two_shot().init(codec, spec, ctx).child("codec").children) == children
    not_all = (uniform(4, 0), uniform(4, "row"), uniform(4, rounding="stochastic"), sign(0))
    assert not any(codec.traits.divides for codec in not_all)
    assert not feedback(uniform(4), store="int8").traits.divides


@pytest.mark.parametrize("limits", [(0, 0), (0, 1 << 20), (1 << 20, 1 << 20)])
def test_a_payload_divides_and_joins_again_whatever_its_size(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinwire.how._divided._SMALL_BYTES", limits[0])
    monkeypatch.setattr("thinwire.how._divided._JOINED_BYTES", limits[1])
    codec, spec, ctx = uniform(4, block=32), spec_of(1000), RankContext(0, (0,), 0, 0)
    spans, x = spec.cut(7, 32), torch.randn(1000)
    payload = codec.encode(x, spec, codec.init(spec, ctx), ctx)
    cut = Cut.of(codec, spans)
    divided = cut.divided(payload)
    for span, own in zip(spans, divided, strict=True):
        alone = codec.encode(x[span.begin : span.end], span, codec.init(span, ctx), ctx)
        assert own.equal(alone)
    assert cut.joined(divided).equal(payload)


def test_a_step_lists_messages_of_one_chunk_and_keeps_others_whole() -> None:
    one = Move((Message(1, parts=(1,)),), (Message(2, parts=(0,), raw=frozenset((0,))),))
    step = Step.of(one, (10, 11, 12))
    assert (step.ranks_out, step.parts_out, step.ranks_in, step.raw_in) == (
        (11,),
        (1,),
        (12,),
        (True,),
    )
    assert step.opened == {0}
    two = Move((Message(1, parts=(1, 2)),), (Message(2, wholes=(0,)),))
    assert Step.of(two, (0, 1, 2)).several is two
