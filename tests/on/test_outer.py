import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.core import Outer, Spec
from thinwire.errors import StrategyError
from thinwire.on import nesterov, sgd

SPEC = Spec((), 0, 5, torch.float32)
rates, momenta = st.floats(0.01, 2), st.floats(0.01, 0.99)
outers = st.one_of(st.builds(sgd, rates), st.builds(sgd, rates, momenta), st.builds(nesterov, rates, momenta))


@given(outer=outers, steps=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_it_is_torch_optim_sgd(outer: sgd | nesterov, steps: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    anchor = torch.randn(5, generator=draws)
    param = torch.nn.Parameter(anchor.clone())
    theirs = torch.optim.SGD([param], lr=outer.lr, momentum=outer.momentum, nesterov=isinstance(outer, nesterov))
    state = outer.init(SPEC, anchor)
    for _ in range(steps):
        delta = torch.randn(5, generator=draws)
        param.grad = delta.clone()
        theirs.step()
        anchor = outer.update(anchor, delta, state)
    assert torch.allclose(anchor, param.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outer", [sgd(0.5, 0.9), nesterov()], ids=repr)
def test_it_replaces_its_state_and_leaves_anchor_and_delta_alone(outer: Outer) -> None:
    anchor, delta = torch.ones(5), torch.ones(5)
    state = outer.init(SPEC, anchor)
    velocity = state["velocity"].value
    outer.update(anchor, delta, state)
    assert velocity.tolist() == [0] * 5
    assert anchor.tolist() == delta.tolist() == [1] * 5
    assert (state["velocity"].kind, state["velocity"].spec) == ("replicated", SPEC)


def test_without_momentum_there_is_no_state() -> None:
    assert list(sgd().init(SPEC, torch.ones(5)).walk()) == []


@pytest.mark.parametrize("make", [sgd, nesterov])
@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5), (0.5, 1.0), (0.5, -0.1), (float("inf"), 0.5)])
def test_a_wrong_argument_is_refused(make: type[sgd] | type[nesterov], lr: float, momentum: float) -> None:
    with pytest.raises(StrategyError, match=r"an outer rate is positive and finite|a momentum lies in"):
        make(lr, momentum)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        sgd(0.0, 1.0)
    assert len(caught.value.reasons) == 2
    with pytest.raises(StrategyError, match=r"use sgd\(0.7\)"):
        nesterov(momentum=0.0)
