"""Ranks that die, stop, disagree or bring nonsense: a clear error on every rank, no hang, nothing
lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import loss_of, mlp, train, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.errors import (
    AttachError,
    DisagreementError,
    FlightError,
    NotLandedError,
    RankLostError,
)
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, parameters, sgd
from thinwire.what import feedback, lowrank, topk, uniform
from thinwire.when import delayed, every

TIMEOUT = timedelta(seconds=8)
FEEDBACK = Strategy(what=feedback(topk(0.1)), how=gather())


def _dying(
    rank: int, victim: int, how: int, strategy: Strategy
) -> tuple[str, tuple[int, ...], str, float]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, strategy, timeout=TIMEOUT)

    def die(step: int) -> None:
        if step == 3 and rank == victim:
            os.kill(os.getpid(), how)

    begun = time.monotonic()
    try:
        train(model, optimizer, rank, range(50), each=die)
    except RankLostError as error:
        return type(error).__name__, error.ranks, str(error), time.monotonic() - begun
    finally:
        if rank != victim:
            with contextlib.suppress(FlightError):
                sync.close()
    return "nothing", (), "", 0.0


@pytest.mark.parametrize("victim", [0, 2], ids=["the store's host", "another"])
@pytest.mark.parametrize("strategy", [Strategy(), FEEDBACK], ids=["dense", "feedback"])
def test_a_rank_killed_in_flight_is_named_by_all_others(victim, strategy):
    results = run_ranks(3, _dying, victim, signal.SIGKILL, strategy, host="rank0")
    assert results.pop(victim) == -signal.SIGKILL
    for kind, ranks, said, seconds in results:
        assert kind == "RankLostError", said
        assert ranks == (victim,), said
        assert f"rank {victim}" in said
        assert "step 4" in said or "step 3" in said
        assert seconds < TIMEOUT.total_seconds() + 12


def _stopped(rank: int, victim: int) -> tuple[str, tuple[int, ...], str, float]:
    if rank != victim:
        return _dying(rank, victim, signal.SIGSTOP, Strategy())
    pid = os.getpid()
    if os.fork() == 0:  # a helper that wakes the victim up again, so that the test can end
        time.sleep(TIMEOUT.total_seconds() + 10)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    return _dying(rank, victim, signal.SIGSTOP, Strategy())


def test_a_rank_that_stops_is_named_after_the_timeout():
    results = run_ranks(3, _stopped, 1, host="rank0")
    results.pop(1)
    for kind, ranks, said, _ in results:
        assert (kind, ranks) == ("RankLostError", (1,)), said


def _too_few_steps(rank: int) -> str:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, timeout=timedelta(seconds=3))
    try:
        train(model, optimizer, rank, range(3 if rank else 4))
    except FlightError as error:
        return str(error)
    if rank:
        time.sleep(7)  # alive, but at another step
    sync.close()
    return ""


@pytest.mark.long
def test_ranks_with_different_numbers_of_steps_are_told():
    said = run_ranks(2, _too_few_steps)[0]
    assert "same number of steps" in said
    assert "step 3" in said


# -- disagreement and bad input at attach
# -----------------------------------------------------------------------------


def _attach_error(rank: int, make_model, strategies, options=None) -> str:
    model = make_model(rank)
    optimizer = torch.optim.SGD([*model.parameters()] or [torch.zeros(1)], 0.1)
    try:
        thinwire.attach(
            model, optimizer, strategies[rank], timeout=TIMEOUT, **(options or [{}, {}])[rank]
        ).close()
    except (AttachError, DisagreementError, thinwire.errors.StrategyError) as error:
        return f"{type(error).__name__}: {error}"
    return "attached"


def _same(_: int) -> nn.Module:
    return mlp()


def _deeper_on_one(rank: int) -> nn.Module:
    return mlp(depth=3 + rank)


def _frozen_on_one(rank: int) -> nn.Module:
    return mlp().requires_grad_(rank == 0)


def _frozen(_: int) -> nn.Module:
    return mlp().requires_grad_(False)


def test_ranks_with_different_strategies_are_told_which():
    for said in run_ranks(2, _attach_error, _same, [Strategy(), FEEDBACK]):
        assert said.startswith("DisagreementError")
        assert "strategy differs" in said
        assert "rank 1" in said
        assert "topk" in said


def test_ranks_with_different_models_are_told_the_first_parameter():
    for said in run_ranks(2, _attach_error, _deeper_on_one, [Strategy()] * 2):
        assert said.startswith("DisagreementError")
        assert "model parameters[4]" in said
        assert '"4.weight", [24, 24]' in said


def test_ranks_with_different_options_are_told():
    for said in run_ranks(2, _attach_error, _same, [Strategy()] * 2, [{"lanes": 1}, {"lanes": 2}]):
        assert "lanes differs (rank 0: 1; rank 1: 2)" in said


def test_one_rank_with_nothing_to_train_is_named_on_all():
    for said in run_ranks(2, _attach_error, _frozen_on_one, [Strategy()] * 2):
        assert said.startswith("AttachError")
        assert "rank 1: the model has nothing to train" in said


def test_a_world_that_the_route_cannot_serve_is_refused():
    strategy = Strategy(how=hierarchical(native(), native(), node=2))
    for said in run_ranks(3, _attach_error, _same, [strategy] * 3, [{}] * 3):
        assert "no multiple of 2" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lanes": 0}, "lanes=0"),
        ({"bucket_bytes": 0}, "bucket_bytes=0"),
        ({"slice_bytes": -1}, "slice_bytes=-1"),
        ({"buffers": "mean"}, "buffers='mean'"),
        ({"strategy": "powersgd"}, "no Strategy"),
        ({"weight": -1.0}, "weights must be finite"),
    ],
)
def test_bad_options_are_refused(options, reason):
    model = mlp()
    with pytest.raises(AttachError, match=reason):
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), **options)


def test_several_problems_are_told_at_once():
    model = mlp().requires_grad_(False)
    with pytest.raises(AttachError) as error:
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), lanes=0, bucket_bytes=0)
    assert all(
        word in str(error.value) for word in ("nothing to train", "lanes=0", "bucket_bytes=0")
    )


def test_a_launcher_without_a_process_group_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = mlp()
    with pytest.raises(AttachError, match="init_process_group"):
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1))


def test_more_fragments_than_parameters_are_refused():
    from thinwire.when import staggered

    model = nn.Linear(2, 2)
    with pytest.raises(AttachError, match="5 fragments"):
        thinwire.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            Strategy(staggered(5, every(10)), on=deltas()),
        )


# -- what ranks hold
# --------------------------------------------------------------------------------------------------


def _bent(rank: int) -> str:
    model = mlp()
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)) as sync:
        sync.check()
        with torch.no_grad():
            if rank == 1:
                model[2].bias[3] += 1e-7
                model[4].weight[0, 0] += 1
        try:
            sync.check()
        except DisagreementError as error:
            return str(error)
    return ""


def test_check_names_the_first_parameter_that_differs():
    for said in run_ranks(3, _bent):
        assert "'2.bias' differs" in said
        assert "ranks [1]" in said


def _start_unequal(rank: int) -> torch.Tensor:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(rank + 7)
    model[0].bias.requires_grad_(False)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)) as sync:
        sync.check()
    return torch.cat([tensor.reshape(-1).double() for tensor in model.state_dict().values()])


def test_parameters_and_buffers_start_as_rank_0s():
    for held in run_ranks(3, _start_unequal):
        assert torch.equal(held, torch.full_like(held, 7))


# -- values that are not finite
# ---------------------------------------------------------------------------------------


def _residuals(sync) -> list[torch.Tensor]:
    return [
        leaf.value.clone()
        for bucket in sync.buckets
        for part in bucket.slices
        for _, leaf in part.state.walk()
    ]


def _poisoned(rank: int, strategy: Strategy) -> dict[str, object]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=2000) as sync:
        train(model, optimizer, rank, range(3))
        before = _residuals(sync)
        loss = loss_of(model, 3, rank)
        (loss * (float("inf") if rank == 1 else 1.0)).backward()
        bad = [not bool(param.grad.isfinite().all()) for param in model.parameters()]
        optimizer.zero_grad()
        after = _residuals(sync)
        train(model, optimizer, rank, range(4, 8))
        sync.check()
        return {
            "bad": bad,
            "kept": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
            "any": any(bool(a.any()) for a in before),
            "finite": bool(weights_of(model).isfinite().all()),
        }


@pytest.mark.parametrize(
    "strategy",
    [
        FEEDBACK,
        Strategy(what=feedback(lowrank(1))),
        Strategy(what=feedback(uniform(4)), how=two_shot(back=feedback(uniform(4)))),
    ],
    ids=["topk", "powersgd", "two-sided"],
)
def test_one_ranks_infinite_gradient_is_not_finite_on_all_and_leaves_residuals_alone(strategy):
    results = run_ranks(2, _poisoned, strategy)
    assert results[0]["bad"] == results[1]["bad"]
    for result in results:
        assert any(result["bad"])
        assert result["kept"]
        assert result["any"]
        assert result["finite"]


def _poisoned_delayed(rank: int) -> tuple[bool, float]:
    """What the failed flight had taken out of the residual comes back, though later flights have
    built on it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    strategy = Strategy(delayed(2, every(1)), feedback(topk(0.1), decay=0.5), gather())
    with thinwire.attach(model, optimizer, strategy) as sync:
        for step in range(9):
            loss = loss_of(model, step, rank)
            (loss * (float("inf") if rank == 1 and step == 4 else 1.0)).backward()
            optimizer.zero_grad()
        got = _residuals(sync)
    clean = mlp()
    with thinwire.attach(clean, torch.optim.SGD(clean.parameters(), 0.0), strategy) as sync:
        for step in range(9):
            loss_of(clean, step, rank).backward()
            if step == 4:
                clean.zero_grad()
            clean.zero_grad()
    finite = all(bool(residual.isfinite().all()) for residual in got)
    return finite, max(float(residual.abs().max()) for residual in got)


def test_an_infinite_gradient_does_not_poison_a_delayed_residual():
    for finite, largest in run_ranks(2, _poisoned_delayed):
        assert finite
        assert 0 < largest < 10


def _poisoned_delta(rank: int, strategy: Strategy) -> tuple[str, bool]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sync = thinwire.attach(model, optimizer, strategy)
    train(model, optimizer, rank, range(3))
    if rank == 1:
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")
    try:
        train(model, optimizer, rank, range(3, 4))
    except FlightError as error:
        leaves = [leaf.value for bucket in sync.buckets for _, leaf in bucket.state.walk()]
        return str(error), all(bool(value.isfinite().all()) for value in leaves)
    finally:
        sync.close()
    return "", False


@pytest.mark.parametrize("on", [deltas(outer=sgd(1.0)), parameters()], ids=["deltas", "parameters"])
def test_a_mean_of_weights_that_is_not_finite_raises_on_all_and_writes_nothing(on):
    results = run_ranks(2, _poisoned_delta, Strategy(every(4), on=on))
    for said, clean in results:
        assert "not finite" in said
        assert clean
    for said, _ in results:
        assert (
            "(rank 1: '4.bias')" in said
        )  # its gradients were not finite, so its steps took all with them


# -- steps that have not landed
# ---------------------------------------------------------------------------------------


def test_a_step_before_the_mean_has_landed_is_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, Strategy(every(2))):
        loss_of(model, 0, 0).backward()
        with pytest.raises(NotLandedError, match="once every 2 backward passes"):
            optimizer.step()
        loss_of(model, 1, 0).backward()
        optimizer.step()


def test_the_hooks_are_gone_after_close():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, Strategy(every(2)))
    sync.close()
    sync.close()
    loss_of(model, 0, 0).backward()
    optimizer.step()
    assert sync.step == 0
