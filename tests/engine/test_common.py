"""The weights that ranks have in common are shown for a while; own ones come back."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from tests.engine.models import built, loss_of, near, weights_of
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.on import deltas, parameters
from thinwire.when import every


@pytest.mark.parametrize("on", [parameters(), deltas()], ids=["parameters", "deltas"])
def test_common_weights_are_the_mean_or_the_anchor(on: deltas | parameters) -> None:
    def body(driver: Driver) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        model, optimizer, sync = built(Strategy(every(4), on=on), driver)
        start = weights_of(model)
        for step in range(2):
            loss_of(model, step, driver.rank).backward()
            optimizer.step()
            optimizer.zero_grad()
        own = weights_of(model)
        with suppress(KeyError), sync.common_weights():
            shown = weights_of(model)
            raise KeyError
        back = torch.equal(weights_of(model), own)
        sync.__exit__(KeyError, KeyError(), None)
        return start, own, shown, back

    results = on_threads(3, body)
    mean = torch.stack([own for _, own, _, _ in results.values()]).mean(0)
    for start, own, shown, back in results.values():
        assert back
        assert not near(own, mean)
        assert near(shown, mean if isinstance(on, parameters) else start)
