"""What a third review found, each as it was reproduced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import train, weights_of
from tests.engine.test_second_review import BUILDING, built
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.errors import AttachError
from thinwire.how import gossip
from thinwire.on import deltas, nesterov, parameters
from thinwire.when import delayed, every

EAGER = Strategy(delayed(2, every(4)), on=deltas(nesterov(0.5, 0.8), eager=True))


@pytest.mark.parametrize("slice_bytes", [None, 64])
def test_an_eager_flight_in_the_air_lands_on_other_slices(slice_bytes: int | None) -> None:
    """What a rank has run ahead by is its bucket's, however the bucket is cut into slices."""

    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = built(EAGER, driver)
        train(model, optimizer, driver.rank, range(5))  # launched at the fourth, and lands at the sixth
        state, own = sync.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
        assert any(key.startswith("all|air/") for key in state)
        train(model, optimizer, driver.rank, range(5, 12))
        unbroken = weights_of(model)
        sync.close()
        model, optimizer, sync = built(EAGER, driver, slice_bytes=slice_bytes)
        with BUILDING:
            model.load_state_dict(own)
        sync.load_state_dict(state)
        train(model, optimizer, driver.rank, range(5, 12))
        resumed = weights_of(model)
        sync.close()
        return unbroken, resumed

    for rank, found in on_threads(2, work).items():
        assert not isinstance(found, BaseException), found
        assert torch.equal(*found), rank


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 2)


def test_gossip_broadcasts_no_buffers() -> None:
    def work(driver: Driver, **settings: object) -> None:
        model = Normed()
        given = Strategy(how=gossip(), on=parameters())
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), given, driver=driver, **settings).close()  # type: ignore[arg-type]

    for error in on_threads(2, work).values():
        assert isinstance(error, AttachError)
        assert "'norm.running_mean'" in str(error)
        assert "take buffers='local'" in str(error)
    assert on_threads(2, lambda driver: work(driver, buffers="local")) == {0: None, 1: None}
