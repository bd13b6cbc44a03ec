import pytest
import torch

import thinwire
from tests.fakes import FakeBucket
from thinwire.core import Schedule, State
from thinwire.errors import AttachError, StrategyError
from thinwire.on import gradients
from thinwire.strategy import Strategy
from thinwire.when import delayed, every, staggered, warmup


def test_it_reads_the_buffer_itself_and_lands_in_it() -> None:
    bucket = FakeBucket(torch.ones(4))
    bucket.grad = torch.arange(4.0)
    x = gradients().read(bucket, State(), weight=0.5)
    assert x.data_ptr() == bucket.grad.data_ptr()  # the hooks have scaled it, as they copied
    gradients().write(bucket, torch.full((4,), 7.0), State())
    assert bucket.grad.tolist() == [7.0] * 4
    assert gradients().common(bucket, State()).tolist() == [1.0] * 4


def test_mean_or_sum() -> None:
    assert (gradients().mean, gradients(reduce="sum").mean) == (True, False)
    with pytest.raises(StrategyError, match="choose 'mean' or 'sum'"):
        gradients(reduce="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "when",
    [
        every(4),
        delayed(2, every(1)),
        delayed(4, every(2)),
        delayed(1, warmup(5, every(1))),
        warmup(5, every(4)),
    ],
    ids=repr,
)
def test_a_mean_lands_where_an_accumulation_ends(when: Schedule) -> None:
    assert Strategy(when=when).when == when
    for step in range(40):
        tick = when.tick(step, 1)
        assert set(tick.land) <= set(tick.launch)


@pytest.mark.parametrize(
    ("when", "told"),
    [
        (staggered(2, every(4)), "an optimiser step needs every gradient"),
        (delayed(1, every(2)), "in the middle of an accumulation"),
        (delayed(4, warmup(2, every(4))), "no warm-up of another period"),
    ],
    ids=repr,
)
def test_a_mean_that_would_land_elsewhere_is_refused(when: Schedule, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        Strategy(when=when)


def test_signs_of_the_mean_and_nan_where_it_is_not_finite() -> None:
    bucket = FakeBucket(torch.ones(6))
    total = torch.tensor([2.5, -1e-30, 0.0, float("nan"), float("inf"), -float("inf")])
    gradients(then="sign").write(bucket, total, State())
    assert bucket.grad.data_ptr() == total.data_ptr(), "totals land where they took off"
    assert bucket.grad[:3].tolist() == [1.0, -1.0, 0.0]
    assert bucket.grad[3:].isnan().all()


def test_then_is_a_word_and_a_setting_that_is_not_said_leaves_no_trace() -> None:
    with pytest.raises(StrategyError, match="choose 'sign', or None"):
        gradients(then="max")  # type: ignore[arg-type]
    assert repr(gradients()) == "gradients(reduce='mean')"
    strategy = Strategy(on=gradients(then="sign"))
    assert Strategy.from_toml(strategy.to_toml()) == strategy
    assert (gradients().homogeneous, gradients(then="sign").homogeneous) == (True, False)


def test_signs_with_a_scaler_are_refused() -> None:
    model = torch.nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(AttachError, match="not in units of the loss"):
        thinwire.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            Strategy(on=gradients(then="sign")),
            scaler=scaler,
        )
