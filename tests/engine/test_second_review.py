"""What a second review found, each as it was reproduced."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.drive.local import Fabric
from thinwire.errors import AttachError, NotLandedError, StrategyError
from thinwire.how import gather, gossip
from thinwire.on import deltas, gradients, parameters, sgd
from thinwire.train.clock import landing
from thinwire.what import feedback, identity, topk
from thinwire.when import by_speed, delayed, every, growing

BUILDING = threading.Lock()  # torch's seed is one for all threads


def built(
    strategy: Strategy, driver: Driver, **settings: object
) -> tuple[nn.Module, torch.optim.Optimizer, thinwire.Syncer]:
    with BUILDING:
        model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, thinwire.attach(model, optimizer, strategy, driver=driver, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", ["pairs", "ring", "exponential"])
def test_gossip_wants_weights_that_are_alike(topology: str) -> None:
    strategy = Strategy(how=gossip(topology), on=parameters())  # type: ignore[arg-type]
    for error in on_threads(
        3, lambda driver: built(strategy, driver, weight=driver.rank + 1.0)
    ).values():
        assert isinstance(error, AttachError)
        assert "weights must be alike" in str(error)

    def weighed(driver: Driver) -> None:
        _, _, sync = built(strategy, driver, weight=2.0)
        sync.weigh(1.0 + driver.rank)
        sync.weights.commit()

    assert all("weights must be alike" in str(error) for error in on_threads(3, weighed).values())
    with pytest.raises(StrategyError, match=r"by_speed\(.*over gossip\(.*weights must be alike"):
        Strategy(by_speed(every(4)), identity(), gossip(topology), parameters())  # type: ignore[arg-type]


OF_EACH_RANKS_OWN = {
    "in the middle of a round": Strategy(every(5), on=parameters()),
    "sparta": recipes.sparta(0.2),
    "gossip": recipes.decentralised(),
    "noloco": recipes.noloco(period=3),
}


def saved(
    driver: Driver, strategy: Strategy, weight: float
) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """A checkpoint after seven steps, the weights that ranks have in common, and each leaf of the
    target."""
    model, optimizer, sync = built(strategy, driver, weight=weight)
    with sync:
        train(model, optimizer, driver.rank, range(7))
        state = sync.state_dict()
        with sync.common_weights():
            return state, weights_of(model), kept(sync)


def kept(sync: thinwire.Syncer) -> list[Tensor]:
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
        3, lambda driver: saved(driver, strategy, 1.0 if alike else 1.0 + driver.rank)
    )
    states, commons, leaves = zip(*found.values(), strict=True)
    merged = {key: value for state in states for key, value in state.items()}

    def loaded(driver: Driver) -> tuple[Tensor, list[Tensor]]:
        model, _, sync = built(strategy, driver)
        with sync:
            sync.load_state_dict(merged)
            return weights_of(model), kept(sync)

    for weights, own in on_threads(world, loaded).values():
        assert torch.allclose(weights, commons[0], rtol=0, atol=1e-12)
        for got, of_ranks in zip(
            own, zip(*leaves, strict=True), strict=True
        ):  # anchors and outer momentum
            assert torch.allclose(got, torch.stack(of_ranks).mean(0), rtol=0, atol=1e-12)


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


def test_a_run_ends_where_every_fragment_has_landed() -> None:
    strategy = recipes.streaming_diloco(period=20, fragments=2, tau=1)
    end = landing(strategy, steps=12, buckets=4)
    landed = {bucket for step in range(end) for bucket in strategy.when.tick(step, 4).land}
    assert landed == {0, 1, 2, 3}
    assert end == 21
    assert landing(strategy, steps=22, buckets=4) == 31  # then at any landing
    with pytest.raises(StrategyError, match=r"lands nothing of 2 of 4 buckets to step 22"):
        landing(recipes.streaming_diloco(period=30, fragments=2, tau=1), steps=11, buckets=4)


def test_by_speed_wants_every_step_that_it_counts() -> None:
    def idle(driver: Driver) -> None:
        _, _, sync = built(Strategy(by_speed(every(4)), on=parameters()), driver)
        with sync:
            sync.skip_step()

    for error in on_threads(2, idle).values():
        assert isinstance(error, NotLandedError)
        assert "was skipped by a rank that takes it" in str(error)


def test_a_launch_after_steps_of_weightless_ranks_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lone(driver: Driver) -> None:
        model, optimizer, sync = built(
            Strategy(by_speed(growing(2, 8, rounds=3)), on=deltas()),
            driver,
            weight=1.0 - driver.rank,
        )
        assert sync.pace is not None
        with sync:
            sync.pace.steps = [1, 8]  # as if rank 0 had been found to be eight times as slow
            for step in range(2):
                if sync.rests():
                    sync.skip_step()
                else:
                    train(model, optimizer, driver.rank, range(step, step + 1))

    for error in on_threads(2, lone).values():
        assert isinstance(error, AttachError)
        assert "no rank of weight above 0 has taken a step" in str(error)


INSIDE = Strategy(every(1), feedback(topk(0.1)), gather(), gradients())


def _two_levels(rank: int, folder: str) -> tuple[list[Tensor], list[Tensor], str]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    mine, _ = dist.new_subgroups(2)

    def residuals(sync: thinwire.Syncer) -> list[Tensor]:
        return [
            leaf.flat.clone()
            for bucket in sync.buckets
            for part in bucket.slices
            for _, leaf in part.state.walk()
        ]

    with (
        thinwire.attach(model, optimizer, INSIDE, group=mine) as inside,
        thinwire.attach(model, optimizer, Strategy(every(4), on=deltas(outer=sgd(1.0)))) as across,
    ):
        train(model, optimizer, rank, range(5))
        dcp.save({"inside": inside, "across": across}, checkpoint_id=folder)
        saved = residuals(inside)
    with thinwire.attach(model, optimizer, INSIDE, group=mine) as inside:
        inside.load_checkpoint(folder, "inside")
        loaded = residuals(inside)
    with thinwire.attach(model, optimizer, INSIDE) as whole, pytest.raises(AttachError) as error:
        whole.load_checkpoint(folder, "inside")
    return saved, loaded, str(error.value)


def test_each_node_of_two_levels_has_its_own_residuals_back(tmp_path: Path) -> None:
    for saved, loaded, error in run_ranks(4, _two_levels, str(tmp_path)):
        assert any(bool(residual.any()) for residual in saved)
        assert all(map(torch.equal, saved, loaded))
        assert "of ranks among 0-1, among 2-3, and this syncer is among all" in error
