"""The state of a syncer: when it may be taken, and what another world, other slices and other
settings make of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import WIDTH, Normed, built, loss_of, mlp, sgd_of, train, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.errors import NotLandedError
from thinwire.how import gather, hierarchical, native
from thinwire.on import deltas, nesterov, parameters
from thinwire.what import feedback, uniform
from thinwire.when import delayed, every


def test_a_checkpoint_in_the_middle_of_an_accumulation_is_refused():
    model = mlp()
    with thinwire.attach(model, sgd_of(model), Strategy(every(2))) as sync:
        loss_of(model, 0, 0).backward()
        with pytest.raises(NotLandedError, match="middle of an accumulation"):
            sync.state_dict()
        loss_of(model, 1, 0).backward()
        sync.state_dict()


def _recut(rank: int, slice_bytes: int | None, states: list | None):
    model = mlp()
    optimizer = sgd_of(model)
    strategy = Strategy(
        every(1), feedback(uniform(4, block=2)), hierarchical(native(), gather(), 2)
    )
    with thinwire.attach(model, optimizer, strategy, slice_bytes=slice_bytes) as sync:
        if states is None:
            train(model, optimizer, rank, range(3))
        else:
            sync.load_state_dict({key: value for state in states for key, value in state.items()})
        return sync.state_dict()


def test_residuals_survive_another_slicing_of_a_hierarchy():
    before = run_ranks(4, _recut, None, None)
    after = run_ranks(4, _recut, 512, before)
    sums = []
    for states in (before, after):
        total: dict[str, torch.Tensor] = {}
        for state in states:
            for key, value in state.items():
                scope, path, *rest = key.split("|", 3)
                if path.endswith("residual"):
                    low, high = map(int, rest[0].split(":"))
                    total.setdefault(rest[1], torch.zeros(WIDTH * WIDTH, dtype=torch.float64))[
                        low:high
                    ] += value.double()
                    assert scope.startswith("rank")
        sums.append(total)
    assert sums[0].keys() == sums[1].keys()
    for name, total in sums[0].items():
        assert torch.equal(total, sums[1][name]), name


OF_EACH_RANKS_OWN = {
    "in the middle of a round": Strategy(every(5), on=parameters()),
    "sparta": recipes.sparta(0.2),
    "gossip": recipes.decentralised(),
    "noloco": recipes.noloco(period=3),
}


def checkpointed(
    driver: Driver, strategy: Strategy, weight: float
) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """A checkpoint after seven steps, the weights that ranks have in common, and each leaf of the
    target."""
    model, optimizer, sync = built(strategy, driver, weight=weight)
    with sync:
        train(model, optimizer, driver.rank, range(7))
        state = sync.state_dict()
        with sync.common_weights():
            return state, weights_of(model), leaves_of(sync)


def leaves_of(sync: thinwire.Syncer) -> list[Tensor]:
    return [
        leaf.flat.clone()
        for bucket in sync.buckets
        for _, leaf in bucket.state.walk()
        if leaf.spec is not None
    ]


@pytest.mark.parametrize("world", [2, 5])
@pytest.mark.parametrize("name", OF_EACH_RANKS_OWN)
def test_another_world_starts_at_the_mean_of_what_each_rank_had(name: str, world: int) -> None:
    strategy = OF_EACH_RANKS_OWN[name]
    alike = not strategy.how.consensus
    found = on_threads(
        3, lambda driver: checkpointed(driver, strategy, 1.0 if alike else 1.0 + driver.rank)
    )
    states, commons, leaves = zip(*found.values(), strict=True)
    merged = {key: value for state in states for key, value in state.items()}

    def loaded(driver: Driver) -> tuple[Tensor, list[Tensor]]:
        model, _, sync = built(strategy, driver)
        with sync:
            sync.load_state_dict(merged)
            return weights_of(model), leaves_of(sync)

    for weights, own in on_threads(world, loaded).values():
        assert torch.allclose(weights, commons[0], rtol=0, atol=1e-12)
        for got, of_ranks in zip(
            own, zip(*leaves, strict=True), strict=True
        ):  # anchors and outer momentum
            assert torch.allclose(got, torch.stack(of_ranks).mean(0), rtol=0, atol=1e-12)


EAGER = Strategy(delayed(2, every(4)), on=deltas(nesterov(0.5, 0.8), eager=True))


@pytest.mark.parametrize("slice_bytes", [None, 64])
def test_an_eager_flight_in_the_air_lands_on_other_slices(slice_bytes: int | None) -> None:
    """What a rank has run ahead by is its bucket's, however the bucket is cut into slices."""

    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model, optimizer, sync = built(EAGER, driver)
        train(
            model, optimizer, driver.rank, range(5)
        )  # launched at the fourth, and lands at the sixth
        state, own = (
            sync.state_dict(),
            {name: value.clone() for name, value in model.state_dict().items()},
        )
        assert any(key.startswith("all|air/") for key in state)
        train(model, optimizer, driver.rank, range(5, 12))
        unbroken = weights_of(model)
        sync.close()
        model, optimizer, sync = built(EAGER, driver, slice_bytes=slice_bytes)
        model.load_state_dict(own)
        sync.load_state_dict(state)
        train(model, optimizer, driver.rank, range(5, 12))
        resumed = weights_of(model)
        sync.close()
        return unbroken, resumed

    for rank, found in on_threads(2, work).items():
        assert not isinstance(found, BaseException), found
        assert torch.equal(*found), rank


def test_local_buffers_are_in_the_state_on_gradients_too() -> None:
    def work(driver: Driver) -> tuple[Tensor, Tensor]:
        model = Normed()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver, buffers="local") as sync:
            model.out(model.norm(torch.full((4, 6), driver.rank + 1.0))).sum().backward()
            optimizer.step()
            state, seen = sync.state_dict(), model.norm.running_mean.clone()
        model.norm.running_mean.zero_()
        with thinwire.attach(model, optimizer, driver=driver, buffers="local") as sync:
            sync.load_state_dict(state)
            return seen, model.norm.running_mean.clone()

    found = on_threads(2, work)
    for each in found.values():
        assert torch.equal(*each)
    assert not torch.equal(found[0][0], found[1][0])
