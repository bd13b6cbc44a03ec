"""What has not landed by the end of a run is reported."""

from __future__ import annotations

import pytest
import torch

import thinwire
from tests.engine.models import built, mlp, train, weights_of
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.drive.local import Fabric
from thinwire.on import deltas, parameters
from thinwire.when import delayed, every


def test_fragments_of_which_none_has_landed_are_told_at_the_end() -> None:
    def short(driver: Driver, steps: int) -> None:
        model, optimizer, sync = built(
            recipes.streaming_diloco(period=20, fragments=2, tau=1), driver, bucket_bytes=2000
        )
        assert len(sync.buckets) == 2
        train(model, optimizer, driver.rank, range(steps))
        sync.close()

    with pytest.warns(
        UserWarning,
        match=r"closed after 15 steps without a mean over ranks of 1 of 2 buckets \(from '.*longer",
    ):
        short(Fabric(1).driver(0, 1), 15)
    short(Fabric(1).driver(0, 1), 22)  # nothing to tell


def test_a_delay_that_is_longer_than_the_run_is_told_at_its_end() -> None:
    model, optimizer, sync = built(Strategy(delayed(100, every(1))), Fabric(1).driver(0, 1))
    start = weights_of(model)
    train(model, optimizer, 0, range(10))
    assert torch.equal(weights_of(model), start)
    with pytest.warns(
        UserWarning, match="closed after 10 steps without a mean over ranks.*has seen no gradient"
    ):
        sync.close()


@pytest.mark.parametrize("on", [deltas(), parameters()], ids=repr)
def test_a_run_that_is_shorter_than_the_period_is_told_at_its_end(on):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, Strategy(every(10), on=on))
    train(model, optimizer, 0, range(4))
    with pytest.warns(
        UserWarning,
        match=r"closed after 4 steps without a mean over ranks: "
        r"every\(n=10\) is longer than the run",
    ):
        sync.close()
