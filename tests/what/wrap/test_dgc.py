import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Codec, Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.testing import contexts
from thinwire.what import by_role, cast, dgc, feedback, topk, uniform

SPEC = Spec((Part("w", (10, 6), 0, "matrix"),), 0, 60, torch.float32)


def said(codec: Codec, xs: list[Tensor]) -> tuple[list[Tensor], State]:
    """What one rank alone hears of itself in flights of these, and its state after them."""
    state, totals = codec.init(SPEC, contexts(group=(0,))[0]), []
    for step, x in enumerate(xs):
        flow = codec.rounds(x, SPEC, state, contexts(step, group=(0,))[0])
        packet = next(flow)
        with pytest.raises(StopIteration) as end:
            flow.send(packet.open(packet.payload, 0))
        totals.append(end.value.value.total)
    return totals, state


def drawn(seed: int, steps: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(60, generator=draws) for _ in range(steps)]


@given(seed=st.integers(0, 2**32), momentum=st.sampled_from([0.5, 0.9]))
def test_of_all_entries_without_a_mask_it_is_sgd_with_momentum_bit_for_bit(
    seed: int, momentum: float
) -> None:
    xs = drawn(seed, 6)
    w = torch.nn.Parameter(torch.zeros(60))
    own = torch.zeros(60)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=momentum)
    for x, total in zip(xs, said(dgc(topk(1.0), momentum, mask=False), xs)[0], strict=True):
        w.grad = x.clone()
        optimizer.step()
        own -= total
        assert torch.equal(w.detach(), own)


def test_of_all_entries_with_a_mask_it_is_plain_sgd() -> None:
    xs = drawn(0, 4)
    assert all(map(torch.equal, said(dgc(topk(1.0)), xs)[0], xs))


@given(
    seed=st.integers(0, 2**32),
    flights=st.integers(1, 10),
    inner=st.sampled_from([topk(5), topk(9) >> uniform(2, grid="rise"), uniform(2)]),
)
def test_without_a_mask_what_was_said_lags_behind_momentum_by_the_residual(
    seed: int, flights: int, inner: Codec
) -> None:
    xs = drawn(seed, flights)
    velocity, moved = torch.zeros(60), torch.zeros(60)
    for x in xs:
        velocity = 0.9 * velocity + x
        moved += velocity
    totals, state = said(dgc(inner, mask=False), xs)
    assert torch.allclose(sum(totals) + state["residual"].value, moved, atol=1e-4)  # type: ignore[arg-type]


def test_what_was_sent_has_no_velocity_left_and_what_waits_has() -> None:
    x = torch.arange(60.0)
    (first, second), state = said(dgc(topk(1)), [x, torch.zeros(60)])
    assert first.nonzero().tolist() == [[59]]
    assert second.nonzero().tolist() == [[58]]
    assert float(second[58]) == pytest.approx(
        58 + 0.9 * 58
    )  # waited for one flight, with its momentum
    assert state["velocity"].value[[57, 58, 59]].tolist() == pytest.approx(
        [0.81 * 57 / 0.9, 0.0, 0.0]
    )


def test_its_states_are_of_the_span_and_summed() -> None:
    leaves = dgc(topk(1), momentum=0.5).init(SPEC, contexts()[2]).leaves
    assert {
        name: (leaf.kind, leaf.spec, leaf.group, leaf.fade) for name, leaf in leaves.items()
    } == {
        "velocity": ("summed", SPEC, (1, 2, 5), 0.5),
        "residual": ("summed", SPEC, (1, 2, 5), 1.0),
    }


@pytest.mark.parametrize("momentum", [0.0, 1.0, -0.1, float("nan")])
def test_momentum_lies_between(momentum: float) -> None:
    with pytest.raises(
        StrategyError,
        match=r"dgc\(momentum=.*\): it lies in \(0, 1\); without momentum, use feedback",
    ):
        dgc(topk(1), momentum)


@pytest.mark.parametrize(
    "inner", [feedback(topk(1)), by_role(matrix=feedback(cast())), dgc(topk(1))], ids=repr
)
def test_one_residual_is_enough(inner: Codec) -> None:
    with pytest.raises(StrategyError, match="would count a loss twice"):
        dgc(inner)
    with pytest.raises(StrategyError, match="would count a loss twice"):
        feedback(inner)
