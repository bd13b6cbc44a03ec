from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Codec, Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import gather
from thinwire.strategy import Strategy
from thinwire.testing import contexts
from thinwire.what import by_role, cast, feedback, identity, randomk, sign, topk, uniform

SPEC = Spec((Part("w", (10, 6), 0, "matrix"),), 0, 60, torch.float32)
SEAT = contexts(group=(0,))[0]


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
        flow = codec.rounds(x, SPEC, state, contexts(step, group=(0,))[0])
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
    second = codec.rounds(
        torch.zeros(60), SPEC, state, SEAT
    )  # launched before the first has landed
    packet = next(second)
    assert packet.open(packet.payload, 0).nonzero().tolist() == [[58]]


def test_the_residual_belongs_to_its_span_and_to_the_ranks_that_sum_it() -> None:
    leaf = feedback(topk(1)).init(SPEC, contexts()[2])["residual"]
    assert (leaf.kind, leaf.spec, leaf.group) == ("summed", SPEC, (1, 2, 5))


@pytest.mark.parametrize("inner", [topk(3), uniform(2), uniform(2, block="row"), sign()], ids=repr)
@given(seed=st.integers(0, 2**32), flights=st.integers(1, 12))
def test_a_residual_in_bf16_loses_what_is_rounded_off_and_no_more(
    inner: Codec, seed: int, flights: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    codec = feedback(inner, store="bf16")
    state = codec.init(SPEC, SEAT)
    assert state["residual"].value.dtype == torch.bfloat16
    room = torch.zeros(60)
    said, heard = torch.zeros(60), torch.zeros(60)
    for step in range(flights):
        x = torch.randn(60, generator=draws)
        packet = next(codec.rounds(x, SPEC, state, contexts(step, group=(0,))[0]))
        said, heard = said + x, heard + packet.open(packet.payload, 0)
        room += state["residual"].value.float().abs() * 2**-8 + 1e-6
        assert state["residual"].value.dtype == torch.bfloat16
    off = (heard + state["residual"].value.float() - said).abs()
    assert (off <= room).all()
    assert off.max() > 1e-4  # it does round


def test_what_bf16_cannot_hold_leaves_the_residual_as_it_was() -> None:
    codec = feedback(topk(1), store="bf16")
    state, _ = flown(codec, [0], [torch.arange(60.0)])
    before = state["residual"].value
    assert before.any()
    huge = torch.zeros(60)
    huge[7], huge[8] = 3.4e38, 3.402e38  # finite, and infinite once rounded to bf16
    next(codec.rounds(huge, SPEC, state, SEAT))
    assert torch.equal(state["residual"].value, before)


@given(seed=st.integers(0, 2**32), flights=st.integers(1, 12))
def test_a_residual_in_int8_loses_half_a_step_a_flight_and_no_more(seed: int, flights: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    codec = feedback(topk(3), store="int8")
    state = codec.init(SPEC, SEAT)
    room = torch.zeros(60)
    said, heard = torch.zeros(60), torch.zeros(60)
    for step in range(flights):
        x = torch.randn(60, generator=draws)
        packet = next(codec.rounds(x, SPEC, state, contexts(step, group=(0,))[0]))
        said, heard = said + x, heard + packet.open(packet.payload, 0)
        room += state["residual"].flat.abs().max() / 254 + 1e-5
        assert state["residual"].value.dtype == torch.uint8
        assert state["residual"].value.numel() == 64  # 60 codes and a step
    off = (heard + state["residual"].flat - said).abs()
    assert (off <= room).all()
    assert off.max() > 1e-4  # it does round


def test_a_float64_residual_is_kept_whole_whatever_is_asked() -> None:
    wide = Spec(SPEC.parts, 0, 60, torch.float64)
    for store in ("bf16", "int8"):
        leaf = feedback(topk(1), store=store).init(wide, SEAT)["residual"]  # type: ignore[arg-type]
        assert (leaf.value.dtype, leaf.form) == (torch.float64, None)


def flown(
    codec: feedback, steps: list[int], xs: list[torch.Tensor]
) -> tuple[State, list[torch.Tensor]]:
    """The state after flights of these at these steps of training, and what was sent in each."""
    state, sent = codec.init(SPEC, SEAT), []
    for step, x in zip(steps, xs, strict=True):
        packet = next(codec.rounds(x, SPEC, state, replace(SEAT, step=step)))
        sent.append(packet.open(packet.payload, 0))
    return state, sent


def test_before_its_start_nothing_is_kept_and_the_inner_codec_speaks_alone() -> None:
    x, silence = torch.arange(60.0), torch.zeros(60)
    _, sent = flown(feedback(topk(1), start=2), [0, 1, 2, 3], [x, silence, x, silence])
    assert [float(each.max()) for each in sent] == [59.0, 0.0, 59.0, 58.0]


def test_a_ramp_is_linear_in_steps_of_training_and_not_in_flights() -> None:
    codec = feedback(topk(1), decay=0.8, start=10, ramp=40)
    assert [codec.decay_at(step) for step in (0, 9, 10, 20, 30, 50, 51, 10**6)] == pytest.approx(
        [0, 0, 0, 0.2, 0.4, 0.8, 0.8, 0.8]
    )
    state, _ = flown(codec, [19, 29, 39], [torch.ones(60)] * 3)  # as every(10) flies
    waited = (1 * codec.decay_at(29) + 1) * codec.decay_at(
        39
    ) + 1  # an entry that was never the largest
    assert float(state["residual"].flat.min()) == 0.0
    assert float(state["residual"].flat.max()) == pytest.approx(waited)
    assert state["residual"].fade == codec.decay_at(39)


@pytest.mark.parametrize(
    ("steps", "forgets"),
    [
        (range(9), {4, 8}),  # every step
        (
            range(2, 30, 3),
            {5, 8, 14, 17, 20, 26, 29},
        ),  # a flight every three steps: the first of each four
        ([6, 13, 20, 27], {13, 20, 27}),  # flights rarer than resets: nothing is ever kept
    ],
    ids=["every 1", "every 3", "every 7"],
)
def test_a_reset_forgets_at_the_first_flight_of_each_period_wherever_flights_fall(
    steps: Sequence[int], forgets: set[int]
) -> None:
    codec = feedback(topk(1), reset=4)
    state = codec.init(SPEC, SEAT)
    found = set()
    for step in steps:
        if codec.decay_of(state, replace(SEAT, step=step)) == 0:
            found.add(step)
        before = state["residual"].flat
        packet = next(codec.rounds(torch.arange(60.0), SPEC, state, replace(SEAT, step=step)))
        said = torch.arange(60.0) + (0 if step in found else before)
        assert torch.allclose(state["residual"].flat + packet.open(packet.payload, 0), said)
    assert found == forgets


def test_its_repr_makes_it_and_says_only_what_was_set() -> None:
    for codec, late in (
        (feedback(topk(3), 0.9), ""),
        (feedback(topk(3), store="bf16"), ", store='bf16'"),
        (feedback(topk(3), store="int8", reset=50), ", store='int8', reset=50"),
        (feedback(topk(3), start=5, ramp=7), ", start=5, ramp=7"),
    ):
        assert repr(codec) == f"feedback(inner=topk(k=3, per=0), decay={codec.decay}{late})"
        assert eval(repr(codec), {"feedback": feedback, "topk": topk}) == codec


def test_it_survives_toml() -> None:
    for codec in (feedback(topk(3)), feedback(topk(3), 0.5, "int8", 1, 2, 3)):
        strategy = Strategy(what=codec, how=gather())
        assert Strategy.from_toml(strategy.to_toml()) == strategy


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        feedback(identity(), decay=2.0, store="int4", start=-1, ramp=-1, reset=1)  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 6


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, float("nan")])
def test_decay_is_a_share(decay: float) -> None:
    with pytest.raises(
        StrategyError,
        match=r"feedback\(decay=.*\): the share of the residual that is kept lies in \(0, 1\]",
    ):
        feedback(topk(1), decay)


def test_what_loses_nothing_needs_none() -> None:
    with pytest.raises(StrategyError, match="it loses nothing"):
        feedback(identity())


@pytest.mark.parametrize(
    "inner",
    [
        feedback(topk(1)),
        by_role(matrix=feedback(topk(1))),
        by_role(vector=by_role(matrix=feedback(cast()))),
    ],
)
def test_one_residual_is_enough(inner: Codec) -> None:
    with pytest.raises(StrategyError, match="would count a loss twice"):
        feedback(inner)
