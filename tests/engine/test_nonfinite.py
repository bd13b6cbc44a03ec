"""Values that are not finite: every rank hears which rank, step and parameter, before they are
applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import recipes
from thinwire.core import Driver
from thinwire.errors import AttachError, NonFiniteError
from thinwire.how import gather, gossip
from thinwire.on import deltas, gradients, parameters
from thinwire.strategy import Strategy
from thinwire.what import feedback, randomk, topk
from thinwire.when import delayed, every

BAD_STEP, PARAM = 3, 2  # "2.weight", the second layer of three
STRATEGIES = {
    "dense": Strategy(),
    "qsgd": recipes.qsgd(),
    "topk": recipes.topk_sgd(0.1),
    "ef_signsgd": recipes.ef_signsgd(),
    "powersgd": recipes.powersgd(2),
    "terngrad": recipes.terngrad(),
    "dgc": recipes.dgc_sgd(0.1),
    "randomk": Strategy(what=randomk(0.02), how=gather()),
    "delayed": Strategy(delayed(2, every(1)), feedback(topk(0.1)), gather()),
}
EXPECTED = "(rank 1: '2.weight')"


def poison(model: nn.Module, value: float = float("nan")) -> Any:
    """Put a value into one entry of one parameter's gradient, in the next backward pass."""

    def hook(grad: Tensor) -> Tensor:
        handle.remove()
        grad = grad.clone()
        grad.view(-1)[7] = value
        return grad

    handle = model[PARAM].weight.register_hook(hook)
    return handle


def train_on(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: int, bad_rank: int = 1
) -> tuple[str, Tensor, int]:
    """The error, the weights before the step that raised it, and that step."""
    before = weights_of(model)
    for step in range(steps):
        if rank == bad_rank and step == BAD_STEP:
            poison(model)
        before = weights_of(model)
        try:
            loss_of(model, step, rank).backward()
            optimizer.step()
        except NonFiniteError as error:
            return str(error), before, step
        optimizer.zero_grad()
    return "", weights_of(model), steps


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_rank_raises_and_names_the_rank_before_a_bad_update_is_applied(name: str) -> None:
    strategy = STRATEGIES[name]

    def work(driver: Driver) -> tuple[str, bool, int, bool]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with thinwire.attach(model, optimizer, strategy, driver=driver, bucket_bytes=2000) as sync:
            error, before, step = train_on(model, optimizer, driver.rank, 8)
            states = [
                leaf.value
                for b in sync.buckets
                for part in b.slices
                for _, leaf in part.state.walk()
            ]
            finite = all(bool(each.isfinite().all()) for each in states if each.is_floating_point())
            return error, torch.equal(before, weights_of(model)), step, finite

    for error, same, step, finite in on_threads(3, work).values():
        assert EXPECTED in error
        assert f"step {BAD_STEP}:" in error
        assert same
        assert step == BAD_STEP + strategy.when.delay
        assert finite


def _over_gloo(rank: int) -> list[tuple[str, bool]]:
    out = []
    for name in ("dense", "qsgd", "randomk"):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        sync = thinwire.attach(model, optimizer, STRATEGIES[name])
        error, before, _ = train_on(model, optimizer, rank, 6, bad_rank=2)
        sync.close()
        out.append((error, torch.equal(before, weights_of(model))))
    return out


def test_three_ranks_over_gloo_raise_alike() -> None:
    for found in run_ranks(3, _over_gloo):
        assert all("(rank 2: '2.weight')" in error and same for error, same in found)


def test_overlap_raises_in_the_forward_pass_that_would_have_stepped() -> None:
    def work(driver: Driver) -> tuple[str, bool, int]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        thinwire.attach(
            model, optimizer, Strategy(), driver=driver, overlap="forward", bucket_bytes=2000
        )
        error, before, step = train_on(model, optimizer, driver.rank, 8)
        return error, torch.equal(before, weights_of(model)), step

    for error, same, step in on_threads(2, work).values():
        assert EXPECTED in error
        assert step == BAD_STEP + 1
        assert same  # the first bucket of that pass has raised; none was stepped


@pytest.mark.filterwarnings("ignore:step 3")
@pytest.mark.parametrize("name", ["dense", "topk", "randomk", "delayed"])
def test_skip_leaves_the_step_out_on_every_rank_and_goes_on(name: str) -> None:
    """As if nobody had had that batch: residuals are those of a run without it."""

    def work(driver: Driver, skips: bool) -> tuple[Tensor, int]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with thinwire.attach(
            model, optimizer, STRATEGIES[name], driver=driver, nonfinite="skip"
        ) as sync:
            if skips:
                train_on(model, optimizer, driver.rank, 8)
            else:
                for step in range(8):
                    loss_of(model, step, driver.rank).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            sync.check()
            return weights_of(model), sync.report().skipped

    results = on_threads(2, lambda driver: work(driver, True))
    assert torch.equal(results[0][0], results[1][0])
    assert bool(results[0][0].isfinite().all())
    assert [skipped for _, skipped in results.values()] == [1, 1]
    clean = on_threads(2, lambda driver: work(driver, False))
    assert not torch.equal(clean[0][0], results[0][0])
    assert clean[0][1] == 0


def test_a_skipped_step_of_a_plain_sum_is_a_step_that_was_not_taken() -> None:
    model, twin = mlp(), mlp()
    for net, bad in ((model, True), (twin, False)):
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        with thinwire.attach(net, optimizer, nonfinite="skip"):
            for step in range(6):
                if step == BAD_STEP and not bad:
                    continue
                if step == BAD_STEP:
                    poison(net, float("inf"))
                loss_of(net, step, 0).backward()
                with (
                    pytest.warns(UserWarning, match=r"step 3: .*left out on all ranks")
                    if step == BAD_STEP
                    else _nothing()
                ):
                    optimizer.step()
                optimizer.zero_grad()
    assert torch.equal(weights_of(model), weights_of(twin))


class _nothing:
    def __enter__(self) -> None:
        """No warning is looked for."""

    def __exit__(self, *_: object) -> None:
        """Nor left."""


def test_pass_applies_what_lands() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, optimizer, nonfinite="pass"):
        assert train_on(model, optimizer, 0, 6, bad_rank=0)[0] == ""
    assert not bool(weights_of(model).isfinite().all())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["dense", "randomk"])
def test_a_step_that_the_scaler_skips_is_no_trouble(name: str, fused: bool) -> None:
    """Also where the codec did not send the entry, all scalers skip; a fused optimiser steps
    itself, with found_inf."""

    def work(driver: Driver) -> tuple[str, Tensor, list[float]]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
        scales = []
        with thinwire.attach(
            model, optimizer, STRATEGIES[name], driver=driver, scaler=scaler
        ) as sync:
            for step in range(6):
                if step == BAD_STEP and driver.rank == 1:
                    poison(model, float("inf"))
                before = weights_of(model)
                scaler.scale(loss_of(model, step, driver.rank)).backward()
                scaler.step(optimizer)
                scaler.update()
                scales.append(scaler.get_scale())
                assert torch.equal(before, weights_of(model)) == (step == BAD_STEP)
                optimizer.zero_grad()
            sync.check()
        return "", weights_of(model), scales

    results = on_threads(2, work)
    assert not any(isinstance(each, Exception) for each in results.values()), results
    for _, weights, scales in results.values():
        assert scales == [8.0] * 3 + [4.0] * 3
        assert torch.equal(weights, results[0][1])


def test_gradients_that_the_loop_has_mended_are_no_trouble() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, optimizer):
        poison(model)
        loss_of(model, 0, 0).backward()
        for param in model.parameters():
            param.grad.nan_to_num_()
        optimizer.step()
        optimizer.zero_grad()
        poison(model)
        loss_of(model, 1, 0).backward()  # and a batch that the loop leaves out
        optimizer.zero_grad()
        loss_of(model, 2, 0).backward()
        optimizer.step()
    assert bool(weights_of(model).isfinite().all())


def test_one_of_two_passes_of_a_step_is_enough() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, optimizer):
        poison(model)
        loss_of(model, 0, 0).backward()
        loss_of(model, 1, 0).backward()
        with pytest.raises(NonFiniteError, match=r"step [01]: gradients .* \(rank 0: '2.weight'\)"):
            optimizer.step()


def test_a_closure_raises_within_the_step() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    with thinwire.attach(model, optimizer):
        poison(model)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, 0, 0)
            loss.backward()
            return loss

        with pytest.raises(NonFiniteError, match=r"closure of optimizer\.step"):
            optimizer.step(closure)


def test_a_sum_that_overflows_is_told_though_every_rank_is_finite() -> None:
    def work(driver: Driver) -> str:
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with thinwire.attach(model, optimizer, Strategy(on=gradients(reduce="sum")), driver=driver):
            (model.weight * 3e38).sum().backward()
            with pytest.raises(NonFiniteError) as caught:
                optimizer.step()
        return str(caught.value)

    for error in on_threads(2, work).values():
        assert "not this rank's own, but the mean of bucket 0" in error


LOCAL = {
    "deltas": Strategy(every(2), on=deltas()),
    "parameters": Strategy(every(2), on=parameters()),
    "gossip": Strategy(every(2), how=gossip(), on=parameters()),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_steps_raise_at_the_landing_and_write_nothing(name: str) -> None:
    strategy = LOCAL[name]

    def work(driver: Driver) -> tuple[str, bool]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        sync = thinwire.attach(model, optimizer, strategy, driver=driver)
        try:
            for step in range(2):
                if driver.rank == 1 and step == 1:
                    poison(model)
                loss_of(model, step, driver.rank).backward()
                optimizer.step()
        except NonFiniteError as error:
            leaves = [leaf.value for bucket in sync.buckets for _, leaf in bucket.state.walk()]
            return str(error), all(bool(value.isfinite().all()) for value in leaves)
        return "", False

    results = on_threads(2, work)
    for error, clean in results.values():
        assert "step 1: parameters that are not finite" in error
        assert clean
    assert ("this rank: '2.weight'" if name == "gossip" else EXPECTED) in results[1][0]
    assert name == "gossip" or EXPECTED in results[0][0]


def test_what_cannot_be_skipped_and_other_words_are_refused() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(
        AttachError,
        match=r"nonfinite='skip' with deltas.*: by a landing the local steps have applied",
    ):
        thinwire.attach(model, optimizer, Strategy(every(2), on=deltas()), nonfinite="skip")
    with pytest.raises(AttachError, match=r"nonfinite='never': choose 'raise' or 'skip' or 'pass'"):
        thinwire.attach(model, optimizer, nonfinite="never")  # type: ignore[arg-type]


def test_finite_buckets_keep_their_gradients() -> None:
    """What a loop mends is the offending bucket; the others' means are as they would be."""

    def work(driver: Driver) -> list[bool]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with thinwire.attach(model, optimizer, driver=driver, bucket_bytes=16):
            if driver.rank == 1:
                poison(model)
            loss_of(model, 0, driver.rank).backward()
            return [bool(param.grad.isfinite().all()) for param in model.parameters()]

    for finite in on_threads(2, work).values():
        assert finite == [True, True, False, True, True, True]


def test_another_optimizer_on_held_parameters_is_judged_too() -> None:
    """Two optimisers on one model, of which one is attached: neither applies what is not finite,
    and both skip."""
    for policy in ("raise", "skip"):
        model = mlp()
        first = torch.optim.SGD(model[0].parameters(), 0.05)
        rest = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 0.05)
        with thinwire.attach(model, first, nonfinite=policy) as sync:  # type: ignore[arg-type]
            poison(model)
            loss_of(model, 0, 0).backward()
            before = weights_of(model)
            if policy == "raise":
                first.step()  # its own gradients are finite
                with pytest.raises(NonFiniteError, match=r"rank 0: '2.weight'"):
                    rest.step()
            else:
                with pytest.warns(UserWarning, match="left out"):
                    rest.step()
                assert torch.equal(before, weights_of(model))
                assert sync.report().skipped == 1


def test_a_closure_that_failed_does_not_blame_the_next_backward() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, optimizer, nonfinite="skip"):

        def closure() -> float:
            raise MemoryError("no room")

        with pytest.raises(MemoryError):
            optimizer.step(closure)
        poison(model)
        loss_of(model, 0, 0).backward()
        with pytest.warns(UserWarning, match="left out"):
            optimizer.step()


def test_ranks_need_not_land_at_the_same_moment() -> None:
    """Rank 0 alone lands early, where a parameter is unused and one is not finite: nothing waits
    for the other."""

    def work(driver: Driver) -> str:
        model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        sync = thinwire.attach(model, optimizer, driver=driver, overlap="forward")
        try:
            for step in range(3):
                loss = model["used"](torch.ones(1, 2)).sum()
                (loss * (float("nan") if step == 2 and driver.rank == 1 else 1.0)).backward()
                optimizer.step()
                if driver.rank == 0:
                    model.state_dict()
                sync.weigh(1.0)
            sync.land()
        except NonFiniteError as error:
            return str(error)
        return ""

    for error in on_threads(2, work, timeout_s=5.0).values():
        assert "step 2" in error
        assert "rank 1: 'used." in error
