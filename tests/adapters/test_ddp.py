"""A strategy inside DistributedDataParallel: dense it is DDP to the bit, and what DDP can do it
still does."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import thinwire
from tests.ddp import CAP, VARIANTS, Branches, train, wrapped
from tests.engine.models import batch, loss_of, mlp, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.errors import AttachError, NonFiniteError, NotLandedError, RankLostError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients
from thinwire.what import feedback, topk, uniform
from thinwire.when import delayed, every

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())
TOPK = Strategy(what=feedback(topk(32, 512)), how=gather())

# -- dense


def _dense(rank: int) -> dict[str, float]:
    differences = {}
    for variant, passes, unused in itertools.product(VARIANTS, (1, 2), (False, True)):
        if unused and variant != "find_unused":
            continue
        if passes > 1 and (variant != "plain" or unused):
            continue  # with static_graph DDP itself fails where no_sync() comes first
        made = [wrapped(Branches() if unused else None, variant) for _ in range(2)]
        sync = thinwire.ddp_hook(made[1][0], optimizer=made[1][1], check_every=1)
        theirs, ours = (train(*each, rank, range(6), passes) for each in made)
        assert len(sync.buckets) > 2
        differences[f"{variant}, {passes} passes, {unused}"] = float((theirs - ours).abs().max())
        sync.close()
    return differences


@pytest.mark.parametrize("world", [2, 3, 4])
def test_dense_is_ddp_bit_for_bit(world: int) -> None:
    for differences in run_ranks(world, _dense):
        assert differences == dict.fromkeys(differences, 0.0)


def _not_zeroed(rank: int, strategy: Strategy) -> float:
    """Steps without `zero_grad()`: `.grad` holds the mean of before, and is added to."""
    return _beside_attach(rank, strategy, "plain", zero=False)[0]


@pytest.mark.parametrize("strategy", [Strategy(), FOUR_BITS], ids=["dense", "4 bits"])
def test_a_mean_that_is_not_zeroed_is_added_to_as_with_attach(strategy: Strategy) -> None:
    assert max(run_ranks(2, _not_zeroed, strategy)) < 1e-4


# -- other strategies


def _beside_attach(
    rank: int, strategy: Strategy, variant: str, zero: bool = True
) -> tuple[float, int, int]:
    """The relative difference to `attach` on the bare module, in DDP's final bucket layout."""
    ddp, optimizer = wrapped(mlp(bias=False), variant)
    train(ddp, optimizer, rank, range(3))  # to DDP's last layout, which is then that of `attach`
    ddp.module.load_state_dict(mlp(bias=False).state_dict())
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    sync = thinwire.ddp_hook(ddp, strategy, optimizer=optimizer)
    bare = mlp(bias=False)
    own = torch.optim.SGD(bare.parameters(), 0.1)
    with thinwire.attach(bare, own, strategy, bucket_bytes=CAP):
        b = train(bare, own, rank, range(8), zero=zero)
    a = train(ddp, optimizer, rank, range(8), zero=zero)
    steps = sync.step
    sync.close()
    return float((a - b).norm() / b.norm()), steps, len(sync.buckets)


@pytest.mark.parametrize(
    ("strategy", "variant"),
    [
        (FOUR_BITS, "plain"),
        (FOUR_BITS, "as_bucket_view"),
        (recipes.powersgd(rank=1), "plain"),
        (TOPK, "static_graph"),
        (Strategy(delayed(1, every(1))), "plain"),
        (replace(FOUR_BITS, when=delayed(1, every(1))), "as_bucket_view"),
        (Strategy(on=gradients(then="sign")), "plain"),
        (Strategy(every(4), on=deltas()), "plain"),
        (recipes.diloco(period=4), "find_unused"),
    ],
    ids=str,
)
def test_it_trains_as_attach_does(strategy: Strategy, variant: str) -> None:
    for difference, steps, _ in run_ranks(2, _beside_attach, strategy, variant):
        assert steps == 8
        assert difference < 1e-4


def _drifting(rank: int) -> tuple[list[str], Tensor]:
    ddp, optimizer = wrapped()
    thinwire.ddp_hook(ddp, Strategy(every(2)))  # without the optimiser
    errors = []
    for step in range(4):
        loss_of(ddp, step, rank).backward()
        try:
            optimizer.step()
        except NotLandedError as error:
            errors.append(str(error))
        else:
            optimizer.zero_grad()
    return errors, weights_of(ddp)


def test_no_optimiser_steps_between_two_landings() -> None:
    by_rank = run_ranks(2, _drifting)
    for errors, _ in by_rank:
        assert len(errors) == 2
        assert "no mean has landed" in errors[0]
    assert torch.equal(by_rank[0][1], by_rank[1][1])


def _ignored(rank: int) -> bool:
    model = Branches()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, ["never.weight", "never.bias"]
    )
    ddp, optimizer = wrapped(model, "find_unused")
    with thinwire.ddp_hook(ddp, optimizer=optimizer) as sync:
        train(ddp, optimizer, rank, range(20))
        return not any("never" in name for bucket in sync.buckets for name in bucket.names)


def test_parameters_that_ddp_ignores_are_nobodys() -> None:
    assert run_ranks(2, _ignored) == [True] * 2


# -- state


def _resumed(rank: int) -> tuple[bool, float]:
    """Stopped after 4 steps and resumed, with DDP and without it."""
    whole, optimizer = wrapped(mlp(bias=False))
    sync = thinwire.ddp_hook(whole, FOUR_BITS, optimizer=optimizer)
    train(whole, optimizer, rank, range(4))
    saved = (
        copy.deepcopy(whole.module.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        sync.state_dict(),
    )
    train(whole, optimizer, rank, range(4, 8))
    sync.close()
    ends = []
    for bare in (False, True):
        model = mlp(bias=False)
        model.load_state_dict(saved[0])
        if bare:
            loop, own = model, torch.optim.AdamW(model.parameters(), 1e-2)
            own.load_state_dict(copy.deepcopy(saved[1]))  # which shares tensors
            again = thinwire.attach(model, own, FOUR_BITS, bucket_bytes=CAP)
        else:
            loop, own = wrapped(model)
            own.load_state_dict(copy.deepcopy(saved[1]))
            again = thinwire.ddp_hook(loop, FOUR_BITS, optimizer=own)
            loss_of(loop, 0, rank).backward()  # DDP's last layout, as it was when saved
            own.zero_grad()
            loop(batch(0, rank)[0])
        with again:
            again.load_state_dict(saved[2])
            ends.append(train(loop, own, rank, range(4, 8)))
    own_end = weights_of(whole)
    return torch.equal(ends[0], own_end), float((ends[1] - own_end).abs().max())


def test_a_run_resumes_bit_for_bit_and_goes_on_without_ddp() -> None:
    for same, difference in run_ranks(2, _resumed):
        assert same
        assert difference < 1e-4


def _switched(rank: int) -> tuple[list[str], Tensor, int]:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer)
    train(ddp, optimizer, rank, range(3))
    lost = list(sync.switch(TOPK))
    train(ddp, optimizer, rank, range(3, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # residuals of gradients are no differences of weights
        sync.switch(Strategy(every(2), on=deltas()))
    train(ddp, optimizer, rank, range(6, 10))
    sync.check()
    return lost, weights_of(ddp), sync.step


def test_a_strategy_is_switched_in_mid_run() -> None:
    (lost, a, step), (_, b, _) = run_ranks(2, _switched)
    assert lost == []
    assert step == 10
    assert torch.equal(a, b)


# -- what goes wrong


def _not_finite(rank: int) -> str:
    ddp, optimizer = wrapped()
    thinwire.ddp_hook(ddp, optimizer=optimizer)
    train(ddp, optimizer, rank, range(2))
    (loss_of(ddp, 2, rank) * (float("nan") if rank == 1 else 1.0)).backward()
    with pytest.raises(NonFiniteError) as error:
        optimizer.step()
    return str(error.value)


def test_a_value_that_is_not_finite_raises_on_every_rank_with_who_had_it() -> None:
    for text in run_ranks(2, _not_finite):
        assert "step 2" in text
        assert "rank 1" in text


def _lost(rank: int) -> str:
    ddp, optimizer = wrapped()
    thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer, timeout=timedelta(seconds=4))
    train(ddp, optimizer, rank, range(2))
    if rank == 1:
        raise KeyError("a bad batch")
    with pytest.raises(RankLostError) as error:
        loss_of(ddp, 2, rank).backward()
    return str(error.value)


def test_a_rank_that_fails_ends_the_step_of_the_others_with_the_reason() -> None:
    with pytest.raises(AssertionError, match="rank 1"):
        run_ranks(2, _lost)
    # rank 0's own words are in its result, which the failure of rank 1 hides: a rank that leaves
    texts = run_ranks(2, _left)
    assert "step 2" in texts[0]
    assert "rank 1" in texts[0]


def _left(rank: int) -> str:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer, timeout=timedelta(seconds=4))
    train(ddp, optimizer, rank, range(2))
    if rank == 1:
        sync.close()
        return ""
    with pytest.raises(RankLostError) as error:
        loss_of(ddp, 2, rank).backward()
    return str(error.value)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("make", "strategy", "words"),
    [
        (mlp, Strategy(), "takes a DistributedDataParallel, not a Sequential"),
        (
            lambda: DistributedDataParallel(nn.Sequential(nn.Embedding(4, 2, sparse=True))),
            Strategy(),
            "'0' has sparse gradients",
        ),
        (lambda: wrapped()[0], recipes.diloco(), "give it, as optimizer="),
        (lambda: wrapped()[0], Strategy(on=gradients(then="sign")), "give the optimiser, as optim"),
        (lambda: wrapped()[0], "dense", "is no Strategy"),
    ],
)
def test_what_no_hook_can_serve_is_refused(make: Any, strategy: Any, words: str) -> None:
    with pytest.raises(AttachError, match=words):
        thinwire.ddp_hook(make(), strategy)


@pytest.mark.usefixtures("group")
def test_ddp_takes_one_hook() -> None:
    ddp, _ = wrapped()
    sync = thinwire.ddp_hook(ddp)
    with pytest.raises(AttachError, match="has a communication hook already"):
        thinwire.ddp_hook(ddp)
    sync.close()
    thinwire.ddp_hook(ddp).close()  # once the first one is closed
    ddp = DistributedDataParallel(mlp())
    ddp.register_comm_hook(None, allreduce_hook)
    with pytest.raises(AttachError, match="has a communication hook already"):
        thinwire.ddp_hook(ddp)


@pytest.mark.usefixtures("group")
def test_a_closed_syncer_says_so_in_backward() -> None:
    ddp, optimizer = wrapped()
    thinwire.ddp_hook(ddp, optimizer=optimizer).close()
    with pytest.raises(AttachError, match=r"without a syncer \(closed, or"):
        loss_of(ddp, 0, 0).backward()


@pytest.mark.usefixtures("group")
def test_it_closes_with_the_module() -> None:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, optimizer=optimizer)
    train(ddp, optimizer, 0, range(3))
    del ddp
    gc.collect()
    assert not sync.source.active


@pytest.mark.usefixtures("group")
def test_another_torch_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.warns(UserWarning, match=r"was tried with torch 2\.13, and this is 2\.99\.0"):
        thinwire.ddp_hook(wrapped()[0]).close()


@pytest.mark.usefixtures("group")
def test_a_copy_of_the_model_is_a_plain_model() -> None:
    ddp, optimizer = wrapped()
    with thinwire.ddp_hook(ddp, optimizer=optimizer) as sync:
        train(ddp, optimizer, 0, range(1))
        twin = copy.deepcopy(ddp.module)
        twin(batch(0, 0)[0]).sum().backward()
        assert sync.step == 1


@pytest.mark.usefixtures("group")
def test_skipping_a_step_names_join() -> None:
    ddp, optimizer = wrapped()
    with (
        thinwire.ddp_hook(ddp, optimizer=optimizer) as sync,
        pytest.raises(AttachError, match=r"ddp\.join\(\)"),
    ):
        sync.skip_step()


# -- loops that a review tried


def _penalty(rank: int) -> tuple[str, float]:
    """A second loss that does not go through the wrapped module: after the first, and before it."""
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer)
    train(ddp, optimizer, rank, range(3))
    loss_of(ddp, 3, rank).backward()
    sum(param.square().sum() for param in ddp.parameters()).backward()  # type: ignore[union-attr]
    with pytest.raises(NotLandedError) as error:
        optimizer.step()
    optimizer.zero_grad()
    with ddp.no_sync():
        sum(param.square().sum() for param in ddp.parameters()).backward()  # type: ignore[union-attr]
    loss_of(ddp, 4, rank).backward()
    optimizer.step()
    weights = weights_of(ddp)
    sync.check()
    sync.close()
    return str(error.value), float(weights.sum())


def test_a_mean_that_a_pass_outside_ddp_would_hide_is_no_step() -> None:
    (text, a), (_, b) = run_ranks(2, _penalty)
    assert "a backward pass that DDP did not see" in text
    assert a == b


def _back_to_gradients(rank: int) -> tuple[int, Tensor]:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, Strategy(every(2), on=deltas()), optimizer=optimizer)
    train(ddp, optimizer, rank, range(4))
    with pytest.warns(UserWarning, match="the optimiser's state of other ranks"):
        sync.switch(Strategy())
    train(ddp, optimizer, rank, range(4, 8))
    sync.close()
    again = thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer)  # the same module, once more
    train(ddp, optimizer, rank, range(8, 10))
    return sync.step + again.step, weights_of(ddp)


def test_from_local_steps_back_to_gradients_and_a_second_hook_after_closing() -> None:
    (steps, a), (_, b) = run_ranks(2, _back_to_gradients)
    assert steps == 10
    assert torch.equal(a, b)


@pytest.mark.usefixtures("group")
def test_copies_of_the_wrapped_module_have_no_syncer(tmp_path: Path) -> None:
    ddp, optimizer = wrapped()
    with thinwire.ddp_hook(ddp, FOUR_BITS, optimizer=optimizer) as sync:
        train(ddp, optimizer, 0, range(3))
        twin = copy.deepcopy(ddp)
        torch.save(ddp, tmp_path / "ddp.pt")
        loss_of(twin, 0, 0).backward()  # torch gives a copy no hook: it is plain DDP
        assert sync.step == 3
    with thinwire.ddp_hook(twin, FOUR_BITS) as own:
        twin.zero_grad()
        loss_of(twin, 0, 0).backward()
        assert own.step == 1


def _between(rank: int) -> bool:
    """A forward pass with gradients between backward and step, as for a metric."""
    ends = []
    for ours in (False, True):
        ddp, optimizer = wrapped(variant="as_bucket_view")
        sync = thinwire.ddp_hook(ddp, optimizer=optimizer) if ours else None
        for step in range(4):
            loss_of(ddp, step, rank).backward()
            ddp(batch(step, rank)[0])
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weights_of(ddp))
        if sync is not None:
            sync.close()
    return torch.equal(*ends)


def test_a_forward_pass_may_come_between_backward_and_step() -> None:
    assert run_ranks(2, _between) == [True, True]


def _ended_before(rank: int) -> str:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, Strategy(every(2), on=deltas()), optimizer=optimizer)
    train(ddp, optimizer, rank, range(2))
    with pytest.raises(AttachError) as error, ddp.join():
        loss_of(ddp, 2, rank)
    sync.close()
    return str(error.value)


def test_join_with_local_steps_names_skip_step() -> None:
    assert all("sync.skip_step()" in text for text in run_ranks(2, _ended_before))


@pytest.mark.usefixtures("group")
def test_closing_after_the_group_has_gone_is_no_error() -> None:
    ddp, optimizer = wrapped()
    sync = thinwire.ddp_hook(ddp, optimizer=optimizer)
    train(ddp, optimizer, 0, range(1))
    for made in sync.driver._groups.values():  # type: ignore[attr-defined]
        dist.destroy_process_group(made)
    sync.close()
