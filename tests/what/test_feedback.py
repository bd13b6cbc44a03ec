import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import CODECS
from thinwire.core import Codec, Part, Spec
from thinwire.errors import StrategyError
from thinwire.testing import check_codec, seats
from thinwire.what import by_role, cast, feedback, identity, randomk, topk, uniform

SPEC = Spec((Part("w", (10, 6), 0, "matrix"),), 0, 60, torch.float32)
SEAT = seats(group=(0,))[0]


@pytest.mark.parametrize("codec", CODECS["feedback"], ids=repr)
def test_laws(codec: Codec) -> None:
    check_codec(codec)


@given(
    seed=st.integers(0, 2**32),
    inner=st.sampled_from([topk(3), uniform(2), randomk(0.1), by_role(matrix=topk(2))]),
    flights=st.integers(1, 12),
)
def test_nothing_is_lost_over_many_flights(seed: int, inner: Codec, flights: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    codec = feedback(inner)
    state = codec.init(SPEC, SEAT)
    said, heard = torch.zeros(60), torch.zeros(60)
    for step in range(flights):
        x = torch.randn(60, generator=draws)
        flow = codec.rounds(x, SPEC, state, seats(step, group=(0,))[0])
        packet = next(flow)
        with pytest.raises(StopIteration) as end:
            flow.send(packet.open(packet.payload, 0))
        said += x
        heard += end.value.value.total
    assert torch.allclose(heard + state["residual"].value, said, atol=1e-5)


def test_decay_forgets() -> None:
    codec = feedback(topk(1), decay=0.5)
    state = codec.init(SPEC, SEAT)
    for x in (torch.arange(60.0), torch.zeros(60)):
        next(codec.rounds(x, SPEC, state, SEAT))
    assert state["residual"].value.tolist() == [i * 0.5 for i in range(58)] + [0.0, 0.0]
    assert state["residual"].fade == 0.5


def test_one_packet_settles_its_residual_before_it_flies() -> None:
    codec = feedback(topk(1))
    state = codec.init(SPEC, SEAT)
    first = codec.rounds(torch.arange(60.0), SPEC, state, SEAT)
    next(first)
    second = codec.rounds(torch.zeros(60), SPEC, state, SEAT)  # launched before the first has landed
    packet = next(second)
    assert packet.open(packet.payload, 0).nonzero().tolist() == [[58]]


def test_the_residual_belongs_to_its_span_and_to_the_ranks_that_sum_it() -> None:
    leaf = feedback(topk(1)).init(SPEC, seats()[2])["residual"]
    assert (leaf.kind, leaf.spec, leaf.group) == ("summed", SPEC, (1, 2, 5))


@given(seed=st.integers(0, 2**32), flights=st.integers(1, 12))
def test_a_residual_in_bf16_loses_what_is_rounded_off_and_no_more(seed: int, flights: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    codec = feedback(topk(3), store="bf16")
    state = codec.init(SPEC, SEAT)
    assert state["residual"].value.dtype == torch.bfloat16
    room = torch.zeros(60)
    said, heard = torch.zeros(60), torch.zeros(60)
    for step in range(flights):
        x = torch.randn(60, generator=draws)
        packet = next(codec.rounds(x, SPEC, state, seats(step, group=(0,))[0]))
        said, heard = said + x, heard + packet.open(packet.payload, 0)
        room += state["residual"].value.float().abs() * 2**-8 + 1e-6
        assert state["residual"].value.dtype == torch.bfloat16
    off = (heard + state["residual"].value.float() - said).abs()
    assert (off <= room).all()
    assert off.max() > 1e-4  # it does round


def test_its_repr_makes_it() -> None:
    for codec in (feedback(topk(3), 0.9), feedback(topk(3), store="bf16")):
        assert eval(repr(codec), {"feedback": feedback, "topk": topk}) == codec


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        feedback(identity(), decay=2.0, store="int4")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 3


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, float("nan")])
def test_decay_is_a_share(decay: float) -> None:
    with pytest.raises(StrategyError, match=r"feedback\(decay=.*\): the share of the residual that is kept lies in \(0, 1\]"):
        feedback(topk(1), decay)


def test_what_loses_nothing_needs_none() -> None:
    with pytest.raises(StrategyError, match="it loses nothing"):
        feedback(identity())


@pytest.mark.parametrize("inner", [feedback(topk(1)), by_role(matrix=feedback(topk(1))), by_role(vector=by_role(matrix=feedback(cast())))])
def test_one_residual_is_enough(inner: Codec) -> None:
    with pytest.raises(StrategyError, match="would count a loss twice"):
        feedback(inner)
