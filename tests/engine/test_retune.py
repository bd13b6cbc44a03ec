"""A link that changes in mid-run is measured anew on every rank at one step; nothing is lost."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.threads import on_threads
from tests.wires import wires
from thinwire import Strategy
from thinwire.core import Driver, Link
from thinwire.engine import probe
from thinwire.how import auto, gather
from thinwire.on import deltas
from thinwire.what import feedback, identity, topk
from thinwire.when import delayed, every

FAST, SLOW = Link(1e-4, 125e6, waits=True), Link(1e-4, 12.5e6, waits=True)
LEFT = "the wire is"


def runs(
    monkeypatch: pytest.MonkeyPatch, strategy: Strategy, links: list[Link], voters: set[int]
) -> dict[int, tuple[tuple[str, ...], list[str], Tensor, Tensor]]:
    """Train for 8 steps; from step 3 on these ranks vote that the wire has left the plan."""
    monkeypatch.setattr(
        probe, "measured", lambda driver, *_: wires(links[min(measured[driver.rank], 1)])[0]
    )
    measured = dict.fromkeys(range(3), 0)

    def work(driver: Driver):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(
            model, optimizer, strategy, driver=driver, bucket_bytes=1000, lanes="auto"
        ) as sync:

            def each(step: int) -> None:
                measured[driver.rank] = 1
                wire = sync.flights.wire
                if step == 3 and driver.rank in voters:
                    for seconds in (1.0, 9.0):
                        for _ in range(5):
                            wire.note(1e6, seconds)

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(model, optimizer, driver.rank, range(8), each=each)
            said = [str(each.message) for each in caught if LEFT in str(each.message)]
            sync.check()
            residuals = [
                leaf.flat
                for bucket in sync.buckets
                for part in bucket.slices
                for path, leaf in part.state.walk()
                if path.endswith("residual")
            ]
            return (
                sync.report().remeasured,
                said,
                weights_of(model),
                torch.cat(residuals) if residuals else torch.empty(0),
            )

    done = on_threads(3, work, lanes=2)
    for each in done.values():
        if isinstance(each, Exception):
            raise each
    return done


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(how=auto()),
        Strategy(what=feedback(topk(0.1)), how=auto(routes=(gather(),))),
        Strategy(when=every(2), on=deltas()),
    ],
    ids=repr,
)
def test_all_ranks_measure_anew_and_train_on_as_before(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = runs(monkeypatch, strategy, [FAST, SLOW], {0, 1, 2})
    steady = runs(monkeypatch, strategy, [FAST, FAST], set())
    for rank, (remeasured, _, weights, residual) in changed.items():
        assert len(remeasured) == 1
        assert remeasured == changed[0][0]
        assert re.search(r"and 125 MB/s then, .* and 12.5 MB/s now", remeasured[0])
        torch.testing.assert_close(weights, steady[rank][2], rtol=0, atol=1e-6)
        torch.testing.assert_close(residual, steady[rank][3], rtol=0, atol=1e-6)
    assert all(not remeasured for remeasured, *_ in steady.values())
    # Threads share one list of warnings.
    assert sum(len(said) for _, said, *_ in changed.values()) >= 1


def test_one_rank_that_finds_the_plan_kept_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    done = runs(monkeypatch, Strategy(how=auto()), [FAST, SLOW], {0, 2})
    assert all(not remeasured for remeasured, *_ in done.values())


def test_a_link_that_is_as_it_was_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done = runs(monkeypatch, Strategy(how=auto()), [FAST, FAST], {0, 1, 2})
    assert all("all stays as it is" in remeasured[0] for remeasured, *_ in done.values())


def test_where_something_is_always_in_the_air_it_goes_on_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategy = Strategy(when=delayed(1, every(1)), what=identity(), how=auto())
    done = runs(monkeypatch, strategy, [FAST, SLOW], {0, 1, 2})
    assert all(not remeasured for remeasured, *_ in done.values())
