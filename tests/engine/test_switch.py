"""A switch of strategy in mid-run keeps what the new store holds, states what it drops, and needs
all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.engine.models import loss_of, mlp, train, weights_of
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.errors import AttachError, DisagreementError, NotLandedError, ThinwireError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, nesterov
from thinwire.what import cast, feedback, topk, uniform
from thinwire.when import every

WORLD, BUCKET_BYTES = 3, 2000
TOPK = Strategy(what=feedback(topk(0.1)), how=gather())
UNIFORM = Strategy(what=feedback(uniform(4)), how=gather())
DILOCO = Strategy(when=every(2), on=deltas(outer=nesterov(0.7, 0.9)))
DENSE = recipes.dense()


def on_ranks(work: Callable[..., Any], *args: Any, timeout_s: float = 20.0) -> list[Any]:
    """`work(model, optimizer, driver, *args)` on each rank; raise what a rank has raised."""

    def body(driver: Driver) -> Any:
        model = mlp()
        return work(model, torch.optim.SGD(model.parameters(), 0.1), driver, *args)

    results = on_threads(WORLD, body, timeout_s=timeout_s)
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[rank] for rank in range(WORLD)]


def attached(model, optimizer, driver, strategy, **settings):
    return thinwire.attach(
        model, optimizer, strategy, driver=driver, bucket_bytes=BUCKET_BYTES, **settings
    )


def elements(sync, last: str) -> dict[str, Tensor]:
    """Every element of the leaves of one name, by parameter."""
    out: dict[str, Tensor] = {}
    for bucket in sync.buckets:
        states = [bucket.state, *(part.state for part in bucket.slices)]
        for path, leaf in (pair for state in states for pair in state.walk()):
            if path.rpartition("/")[2] == last:
                for extent in leaf.spec.extents():
                    whole = out.setdefault(
                        extent.part.name, torch.full((extent.part.numel,), torch.nan)
                    )
                    size = extent.high - extent.low
                    whole[extent.low : extent.high] = leaf.flat[extent.at : extent.at + size]
    return out


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is kept


def _residuals(model, optimizer, driver, new: Strategy):
    with attached(model, optimizer, driver, TOPK, slice_bytes=1500) as sync:
        train(model, optimizer, driver.rank, range(3))
        before, spans = elements(sync, "residual"), _spans(sync)
        lost = sync.switch(new)
        after, spans_after = elements(sync, "residual"), _spans(sync)
        train(model, optimizer, driver.rank, range(3, 5))
        return before, after, lost, spans, spans_after, weights_of(model), len(sync.buckets)


def _spans(sync) -> list[tuple[int, int]]:
    return [(part.spec.begin, part.spec.end) for b in sync.buckets for part in b.slices]


@pytest.mark.parametrize("how", [gather(), two_shot()], ids=["gather", "two_shot"])
def test_residuals_are_kept_element_for_element_at_another_grain(how) -> None:
    results = on_ranks(_residuals, Strategy(what=feedback(uniform(4)), how=how))
    for before, after, lost, spans, spans_after, _, buckets in results:
        assert buckets > 1
        assert spans != spans_after
        assert same(before, after)
        assert any(each.any() for each in before.values())
        assert lost == ()
    assert not same(results[0][0], results[1][0]), "ranks' own residuals"
    assert all(torch.equal(each[5], results[0][5]) for each in results)


def _twice(model, optimizer, driver, strategy: Strategy, again: bool):
    with attached(model, optimizer, driver, strategy) as sync:
        train(model, optimizer, driver.rank, range(4))
        if again:
            assert sync.switch(strategy) == ()
        train(model, optimizer, driver.rank, range(4, 8))
        return weights_of(model), sync.report().sent_bytes, sync.state_dict(), sync.step


@pytest.mark.parametrize("strategy", [DENSE, TOPK, recipes.powersgd(), DILOCO], ids=range(4))
def test_a_switch_to_an_equal_strategy_changes_no_bit(strategy) -> None:
    for once, twice in zip(
        on_ranks(_twice, strategy, False), on_ranks(_twice, strategy, True), strict=True
    ):
        assert torch.equal(once[0], twice[0])
        assert once[1] == pytest.approx(twice[1], rel=1e-12)
        assert once[3] == twice[3]
        assert once[2].keys() == twice[2].keys()
        assert all(torch.equal(once[2][key], twice[2][key]) for key in once[2])


def _anchors(model, optimizer, driver):
    with attached(model, optimizer, driver, DILOCO) as sync:
        train(model, optimizer, driver.rank, range(4))
        before = elements(sync, "anchor"), elements(sync, "velocity")
        lost = sync.switch(Strategy(when=every(3), what=cast("bf16"), on=DILOCO.on))
        after = elements(sync, "anchor"), elements(sync, "velocity")
        train(model, optimizer, driver.rank, range(4, 6))
        return before, after, lost, weights_of(model)


def test_anchors_and_outer_momentum_are_kept_under_another_codec_and_period() -> None:
    results = on_ranks(_anchors)
    for before, after, lost, weights in results:
        assert same(before[0], after[0])
        assert same(before[1], after[1])
        assert lost == ()
        assert any(each.any() for each in before[1].values())
        assert torch.equal(weights, results[0][3])


def _there_and_back(model, optimizer, driver):
    with attached(model, optimizer, driver, DENSE) as sync:
        train(model, optimizer, driver.rank, range(2))
        first = sync.switch(DILOCO)
        common, anchor = weights_of(model), elements(sync, "anchor")
        names = [name for name, _ in model.named_parameters()]
        at_weights = torch.equal(common, torch.cat([anchor[name] for name in names]))
        train(model, optimizer, driver.rank, range(2, 4))
        second = sync.switch(DENSE)
        train(model, optimizer, driver.rank, range(4, 6))
        return first, at_weights, second, weights_of(model), sync.report()


def test_gradients_to_local_steps_and_back() -> None:
    # filters of warnings belong to the process, so not within a rank's thread
    with pytest.warns(UserWarning, match="'on/anchor' of 6 parameters"):
        results = on_ranks(_there_and_back)
    for first, at_weights, second, weights, report in results:
        assert first == ()
        assert at_weights
        assert [text.partition(" ")[0] for text in second] == ["'on/anchor'", "'on/outer/velocity'"]
        assert torch.equal(weights, results[0][3])
        assert report.steps == 6
        assert any("to step 4" in row.name for row in report.rows)


def _dropped(model, optimizer, driver, new: Strategy):
    with attached(model, optimizer, driver, TOPK) as sync:
        train(model, optimizer, driver.rank, range(2))
        return sync.switch(new)


@pytest.mark.parametrize(("new", "why"), [(DENSE, "does not hold it"), (DILOCO, "other values")])
def test_a_residual_that_has_no_place_is_stated(new, why) -> None:
    with pytest.warns(UserWarning, match=why):
        results = on_ranks(_dropped, new)
    for lost in results:
        assert len(lost) == 1
        assert "residual' of 6 parameters" in lost[0]
        assert why in lost[0]


def _saved(model, optimizer, driver):
    with attached(model, optimizer, driver, TOPK) as sync:
        train(model, optimizer, driver.rank, range(3))
        sync.switch(UNIFORM)
        state, weights = sync.state_dict(), weights_of(model)
        train(model, optimizer, driver.rank, range(3, 6))
        gone_on = weights_of(model)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
    with attached(model, optimizer, driver, UNIFORM) as sync:
        sync.load_state_dict(state)
        train(model, optimizer, driver.rank, range(3, 6))
        return gone_on, weights_of(model)


def test_what_is_saved_after_a_switch_loads_under_the_new_strategy() -> None:
    for gone_on, resumed in on_ranks(_saved):
        assert torch.equal(gone_on, resumed)


# -- what is refused


def steps(model, optimizer, rank: int, some: range) -> None:
    """Train without clipping, which would read gradients that land in the forward pass."""
    for step in some:
        loss_of(model, step, rank).backward()
        optimizer.step()
        optimizer.zero_grad()


def failures(work, strategy: Strategy, timeout_s: float = 20.0) -> list[Exception]:
    def body(driver: Driver) -> Any:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with attached(model, optimizer, driver, strategy) as sync:
            work(model, optimizer, sync, driver.rank)

    results = on_threads(WORLD, body, timeout_s=timeout_s)
    assert all(isinstance(result, Exception) for result in results.values()), results
    return [results[rank] for rank in range(WORLD)]


def test_in_mid_period_it_counts_the_steps_that_are_left() -> None:
    def work(model, optimizer, sync, rank):
        train(model, optimizer, rank, range(3))
        sync.switch(DENSE)

    for error in failures(work, Strategy(when=every(5), on=DILOCO.on)):
        assert isinstance(error, NotLandedError)
        assert "at step 3" in str(error)
        assert "2 steps are left" in str(error)


def test_before_the_mean_is_applied_it_is_refused() -> None:
    def work(model, optimizer, sync, rank):
        model(torch.ones(1, 24)).sum().backward()
        sync.switch(TOPK)

    for error in failures(work, DENSE):
        assert isinstance(error, NotLandedError)
        assert "after optimizer.step()" in str(error)


def test_other_strategies_on_ranks_are_named() -> None:
    def work(model, optimizer, sync, rank):
        train(model, optimizer, rank, range(1))
        sync.switch(UNIFORM if rank == 1 else TOPK)

    for error in failures(work, DENSE):
        assert isinstance(error, DisagreementError)
        assert "strategy differs" in str(error)
        assert "ranks 0, 2" in str(error)
        assert "rank 1" in str(error)


def test_one_rank_that_calls_alone_is_an_error_on_all() -> None:
    def work(model, optimizer, sync, rank):
        train(model, optimizer, rank, range(1))
        if rank == 1:
            sync.switch(TOPK)
        train(model, optimizer, rank, range(1, 3))

    for error in failures(work, DENSE, timeout_s=2.0):
        assert isinstance(error, ThinwireError), repr(error)
        assert re.search(r"rank \d|ranks \[?\d", str(error)), str(error)


def test_a_refused_strategy_leaves_the_old_one_at_work() -> None:
    def work(model, optimizer, driver):
        with attached(model, optimizer, driver, DENSE, overlap="forward") as sync:
            steps(model, optimizer, driver.rank, range(2))
            with pytest.raises(AttachError, match="rank 2: "):
                sync.switch(DILOCO)
            steps(model, optimizer, driver.rank, range(2, 4))
            sync.land()
            assert sync.strategy == DENSE
            assert sync.step == 4
            return weights_of(model)

    results = on_ranks(work)
    assert all(torch.equal(each, results[0]) for each in results)


def test_means_that_land_in_the_forward_pass_do_so_after_a_switch() -> None:
    def work(model, optimizer, driver, overlap):
        with attached(model, optimizer, driver, DENSE, overlap=overlap) as sync:
            steps(model, optimizer, driver.rank, range(2))
            sync.switch(TOPK)
            steps(model, optimizer, driver.rank, range(2, 4))
            sync.land()
            return weights_of(model)

    for late, early in zip(on_ranks(work, "forward"), on_ranks(work, "backward"), strict=True):
        assert torch.equal(late, early)


def test_unequal_weights_are_no_beginning_for_gradients() -> None:
    def work(model, optimizer, sync, rank):
        train(model, optimizer, rank, range(2))
        with torch.no_grad():
            model[0].bias += rank
        sync.switch(DENSE)

    for error in failures(work, DILOCO):
        assert isinstance(error, DisagreementError)
        assert "'0.bias'" in str(error)
        assert "ranks [1, 2]" in str(error)


def test_a_closed_syncer_does_not_switch() -> None:
    model = mlp()
    sync = thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1))
    sync.close()
    with pytest.raises(AttachError, match="closed"):
        sync.switch(TOPK)


def _adam(driver: Driver) -> Tensor:
    """From local steps, in which each rank's Adam has its own averages, to gradients."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with thinwire.attach(model, optimizer, DILOCO, driver=driver) as sync:
        train(model, optimizer, driver.rank, range(4))
        assert any("the optimiser's state of other ranks" in lost for lost in sync.switch(DENSE))
        train(model, optimizer, driver.rank, range(4, 8))
        sync.check()
    return weights_of(model)


@pytest.mark.filterwarnings("ignore:switch")
def test_from_local_steps_all_go_on_with_one_optimisers_state() -> None:
    weights = list(on_threads(WORLD, _adam).values())
    assert all(torch.equal(each, weights[0]) for each in weights)
