import pytest
import torch

from tests.fakes import FakeBucket
from thinwire.core import Schedule, State
from thinwire.errors import StrategyError
from thinwire.on import gradients
from thinwire.strategy import Strategy
from thinwire.when import delayed, every, staggered, warmup


def test_it_reads_the_buffer_itself_and_lands_in_it() -> None:
    bucket = FakeBucket(torch.ones(4))
    bucket.grad = torch.arange(4.0)
    x = gradients().read(bucket, State(), share=0.5)
    assert x.data_ptr() == bucket.grad.data_ptr()  # the hooks have scaled it, as they copied
    gradients().write(bucket, torch.full((4,), 7.0), State())
    assert bucket.grad.tolist() == [7.0] * 4
    assert gradients().common(bucket, State()).tolist() == [1.0] * 4


def test_mean_or_sum() -> None:
    assert (gradients().mean, gradients(reduce="sum").mean) == (True, False)
    with pytest.raises(StrategyError, match="choose 'mean' or 'sum'"):
        gradients(reduce="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "when", [every(4), delayed(2, every(1)), delayed(4, every(2)), delayed(1, warmup(5, every(1))), warmup(5, every(4))], ids=repr
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
