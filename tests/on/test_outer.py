import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeBucket
from thinwire import Strategy, attach
from thinwire.core import Outer, Part, Spec
from thinwire.errors import StrategyError
from thinwire.on import deltas, nesterov, optim, sgd
from thinwire.on.outer import outer_rate
from thinwire.when import every

SPEC = Spec((), 0, 5, torch.float32)
rates, momenta = st.floats(0.01, 2), st.floats(0.01, 0.99)
outers = st.one_of(
    st.builds(sgd, rates), st.builds(sgd, rates, momenta), st.builds(nesterov, rates, momenta)
)


@given(outer=outers, steps=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_it_is_torch_optim_sgd(outer: sgd | nesterov, steps: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    anchor = torch.randn(5, generator=draws)
    param = torch.nn.Parameter(anchor.clone())
    theirs = torch.optim.SGD(
        [param], lr=outer.lr, momentum=outer.momentum, nesterov=isinstance(outer, nesterov)
    )
    state = outer.init(SPEC, anchor)
    for _ in range(steps):
        delta = torch.randn(5, generator=draws)
        param.grad = delta.clone()
        theirs.step()
        anchor = outer.update(anchor, delta, state, SPEC)
    assert torch.allclose(anchor, param.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outer", [sgd(0.5, 0.9), nesterov(0.7)], ids=repr)
def test_it_replaces_its_state_and_leaves_anchor_and_delta_alone(outer: Outer) -> None:
    anchor, delta = torch.ones(5), torch.ones(5)
    state = outer.init(SPEC, anchor)
    velocity = state["velocity"].value
    outer.update(anchor, delta, state, SPEC)
    assert velocity.tolist() == [0] * 5
    assert anchor.tolist() == delta.tolist() == [1] * 5
    assert (state["velocity"].kind, state["velocity"].spec) == ("replicated", SPEC)


def test_without_momentum_there_is_no_state() -> None:
    assert list(sgd().init(SPEC, torch.ones(5)).walk()) == []


@pytest.mark.parametrize("make", [sgd, nesterov])
@pytest.mark.parametrize(
    ("lr", "momentum"),
    [(0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5), (0.5, 1.0), (0.5, -0.1), (float("inf"), 0.5)],
)
def test_a_wrong_argument_is_refused(
    make: type[sgd] | type[nesterov], lr: float, momentum: float
) -> None:
    with pytest.raises(
        StrategyError, match=r"an outer rate is positive and finite|a momentum lies in"
    ):
        make(lr, momentum)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        sgd(0.0, 1.0)
    assert len(caught.value.reasons) == 2
    with pytest.raises(StrategyError, match=r"use sgd\(0.7\)"):
        nesterov(0.7, 0.0)


# -- the default rate
# -------------------------------------------------------------------------------------------------


def test_the_rate_by_replicas_is_the_published_one_for_long_rounds_and_falls_with_short_ones() -> (
    None
):
    assert [outer_rate(world, 30) for world in (1, 2, 4, 8, 9, 100)] == [
        0.4,
        0.6,
        0.6,
        0.8,
        0.8,
        0.8,
    ]
    assert outer_rate(3, 500) == pytest.approx(0.6)
    assert 0.6 < outer_rate(6, 30) < 0.8
    for world in (1, 2, 8):
        rates = [outer_rate(world, period) for period in (1, 2, 5, 10, 29, 30, 1000)]
        assert rates == sorted(rates)
        assert rates[0] == pytest.approx(0.1), (
            "a steady delta of one step moves the anchor by 0.1 / (1 - 0.9) of it: by itself"
        )


@pytest.mark.parametrize(("world", "period"), [(2, 30), (8, 4)])
def test_a_rate_that_is_not_said_is_settled_by_world_and_period(world: int, period: int) -> None:
    bucket = FakeBucket(torch.zeros(5), world=world, when=every(period))
    assert nesterov().bind(bucket) == nesterov(outer_rate(world, period))
    assert nesterov(0.7).bind(bucket) == nesterov(0.7)
    assert sgd(0.7).bind(bucket) == sgd(0.7)
    strategy = Strategy(when=every(period), on=deltas())
    assert Strategy.from_toml(strategy.to_toml()) == strategy, "a rate by world stays so in TOML"


def test_no_rate_is_known_for_another_momentum() -> None:
    with pytest.raises(StrategyError, match="give the rate, too"):
        nesterov(momentum=0.8)


# -- any optimiser of torch
# -------------------------------------------------------------------------------------------

PARTS = Spec(
    (Part("w", (3, 4), 0, "matrix"), Part("b", (5,), 12, "vector"), Part("s", (), 17, "vector")),
    0,
    18,
    torch.float32,
)
MATRIX = Spec((Part("w", (3, 4), 0, "matrix"),), 0, 12, torch.float32)
OTHERS = {
    "AdamW": "lr=0.3, betas=(0.9, 0.95), weight_decay=0.1",
    "NAdam": "lr=0.1",
    "Adafactor": "lr=0.1",
    "RMSprop": "lr=0.1, momentum=0.9, centered=True",
    "Adagrad": "lr=0.1, initial_accumulator_value=0.5",
    "Rprop": "",
    "SGD": "lr=0.7, momentum=0.9, nesterov=True",
    "Muon": "lr=0.1",
}


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_torchs_own_bit_for_bit(name: str) -> None:
    outer, spec = optim(name, OTHERS[name]), MATRIX if name == "Muon" else PARTS
    draws = torch.Generator().manual_seed(3)
    anchor = torch.randn(spec.numel, generator=draws)
    theirs = [
        torch.nn.Parameter(anchor[part.begin : part.end].view(part.shape).clone())
        for part in spec.parts
    ]
    optimizer, state = outer.make(theirs), outer.init(spec, anchor)
    for _ in range(5):
        delta = torch.randn(spec.numel, generator=draws)
        before = anchor.clone()
        new = outer.update(anchor, delta, state, spec)
        assert torch.equal(anchor, before), "the old anchor stays as it is"
        for part, param in zip(spec.parts, theirs, strict=True):
            param.grad = delta[part.begin : part.end].view(part.shape).clone()
        optimizer.step()
        anchor = new
        assert torch.equal(anchor, torch.cat([param.detach().reshape(-1) for param in theirs]))
    assert {leaf.kind for _, leaf in state.walk()} == {"replicated"}


def test_it_is_our_nesterov_where_it_is_told_to_be() -> None:
    ours, theirs = nesterov(0.7, 0.9), optim("SGD", OTHERS["SGD"])
    a = b = torch.randn(18, generator=torch.Generator().manual_seed(0))
    one, two = ours.init(PARTS, a), theirs.init(PARTS, b)
    for step in range(4):
        delta = torch.randn(18, generator=torch.Generator().manual_seed(step))
        a, b = ours.update(a, delta, one, PARTS), theirs.update(b, delta, two, PARTS)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("adamw", "", "torch.optim has no optimiser of that name"),
        ("Optimizer", "", "torch.optim has no optimiser of that name"),
        ("AdamW", "lr=-1.0", "Invalid learning rate"),
        ("AdamW", "rate=0.1", "unexpected keyword argument 'rate'"),
        ("AdamW", "0.3", "give every argument by its name"),
        ("AdamW", "lr=fast", "write settings such as"),
        ("AdamW", "lr=(", "write settings such as"),
        ("LBFGS", "", "closure"),
        ("SparseAdam", "", "does not support dense gradients"),
    ],
)
def test_what_torch_refuses_is_refused_when_it_is_written_down(
    name: str, settings: str, told: str
) -> None:
    with pytest.raises(StrategyError, match=told):
        optim(name, settings)


def test_a_parameter_that_it_refuses_is_named_at_attach() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(
        StrategyError, match=r"'bias' of shape \(3,\).*Take another outer optimiser"
    ):
        attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            Strategy(when=every(2), on=deltas(optim("Muon"))),
        )
