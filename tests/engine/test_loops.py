"""Training loops that users have: each does what one process with all the data would do, or says
why not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import thinwire
from tests.engine.models import WIDTH, batch, loss_of, mlp, train, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.errors import AttachError, NotLandedError
from thinwire.how import gather
from thinwire.on import deltas, gradients, parameters, sgd
from thinwire.what import cast, feedback, topk, uniform
from thinwire.when import delayed, every

WORLD = 2


def _alone(
    steps: int,
    passes: int = 1,
    ranks: int = WORLD,
    weights=None,
    lr: float = 0.1,
    momentum: float = 0.9,
) -> torch.Tensor:
    """One process, float64: the gradient is the (weighted) mean over ranks of each rank's sum over
    passes."""
    weights = weights or [1.0] * ranks
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    for step in range(steps):
        for rank in range(ranks):
            for micro in range(passes):
                (
                    loss_of(model, step * passes + micro, rank) * weights[rank] / sum(weights)
                ).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


def _together(
    rank: int, strategy: Strategy, passes: int, weight: float, weigh: bool
) -> torch.Tensor:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with thinwire.attach(
        model, optimizer, strategy, weight=1.0 if weigh else [1.0, weight][rank]
    ) as sync:
        if weigh:
            sync.weigh([1.0, weight][rank])
        train(model, optimizer, rank, range(10), passes)
    return weights_of(model)


@pytest.mark.parametrize(
    ("strategy", "passes", "weight", "weigh"),
    [
        (Strategy(), 1, 1.0, False),
        (Strategy(every(4)), 4, 1.0, False),
        (Strategy(how=gather()), 1, 3.0, False),
        (Strategy(), 1, 3.0, True),
        (Strategy(delayed(0, every(1))), 1, 1.0, False),
    ],
    ids=["plain", "accumulation", "weights at attach", "weights by weigh", "no delay"],
)
def test_many_ranks_equal_one_with_all_the_data(strategy, passes, weight, weigh):
    expected = _alone(10, passes, weights=[1.0, weight])
    for got in run_ranks(WORLD, _together, strategy, passes, weight, weigh):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def _summed(rank: int) -> torch.Tensor:
    model = mlp(dtype=torch.float64)
    with thinwire.attach(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        Strategy(on=gradients(reduce="sum")),
        weight=rank + 1,
    ):
        loss_of(model, 0, rank).backward()
        return torch.cat([param.grad.reshape(-1) for param in model.parameters()])


def test_reduce_sum_adds_what_the_ranks_have():
    model = mlp(dtype=torch.float64)
    for rank in range(3):
        loss_of(model, 0, rank).backward()
    expected = torch.cat([param.grad.reshape(-1) for param in model.parameters()])
    for got in run_ranks(3, _summed):
        assert torch.allclose(got, expected, rtol=0, atol=1e-13)


# -- local steps
# --------------------------------------------------------------------------------------------------


# -- AMP
# --------------------------------------------------------------------------------------------------


def _amp(
    rank: int, strategy: Strategy, overflow_on: tuple[int, ...], scale: float
) -> dict[str, object]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    taken = []
    with thinwire.attach(model, optimizer, strategy, scaler=scaler) as sync:
        for step in range(8):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, step, rank)
            if step == 3 and rank in overflow_on:
                loss = loss * float("inf")
            before = weights_of(model)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            taken.append(not torch.equal(before, weights_of(model)))
        if strategy.on.clock == "backward":
            sync.check()
        return {
            "steps": sync.step,
            "taken": taken,
            "scale": scaler.get_scale(),
            "weights": weights_of(model),
            "finite": bool(weights_of(model).isfinite().all()),
            "residual": sum(
                float(leaf.value.norm())
                for bucket in sync.buckets
                for part in bucket.slices
                for _, leaf in part.state.walk()
            ),
        }


def test_an_overflow_on_one_rank_is_skipped_by_all_scalers():
    for result in run_ranks(
        2, _amp, Strategy(what=feedback(topk(0.1)), how=gather()), (1,), 1024.0
    ):
        assert result["taken"] == [True, True, True, False, True, True, True, True]
        assert result["scale"] == 512.0
        assert result["finite"]


def test_residuals_live_in_unscaled_units():
    strategy = Strategy(what=feedback(topk(0.1)), how=gather())
    small = run_ranks(2, _amp, strategy, (), 2.0)
    large = run_ranks(2, _amp, strategy, (), 65536.0)
    for a, b in zip(small, large, strict=True):
        assert a["residual"] == pytest.approx(b["residual"], rel=1e-5)
        assert torch.allclose(a["weights"], b["weights"], atol=1e-6)


def test_an_overflow_on_one_rank_does_not_make_local_clocks_drift():
    """Rank 1's scaler leaves its optimiser alone at step 3; both ranks still launch after 4
    attempts."""
    results = run_ranks(
        2,
        _amp,
        Strategy(every(4), feedback(uniform(4)), gather(), deltas(outer=sgd(1.0))),
        (1,),
        1024.0,
    )
    assert [result["steps"] for result in results] == [8, 8]
    assert results[0]["taken"][3]
    assert results[1]["finite"]
    assert torch.equal(results[0]["weights"], results[1]["weights"])  # step 8 is a landing


def _skipping(rank: int) -> tuple[torch.Tensor, int]:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer) as sync:
        for step in range(4):
            if step == 2 and rank == 1:
                sync.skip_step()  # no data here: its contribution is zero
            else:
                loss_of(model, step, rank).backward()
            optimizer.step()
            optimizer.zero_grad()
        sync.check()
        return weights_of(model), sync.step


def test_a_rank_without_data_takes_part_with_zeros():
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(4):
        for rank in range(2):
            if not (step == 2 and rank == 1):
                (loss_of(model, step, rank) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for got, steps in run_ranks(2, _skipping):
        assert steps == 4
        assert torch.allclose(got, weights_of(model), rtol=0, atol=1e-12)


# -- models
# --------------------------------------------------------------------------------------------------


class _Odd(nn.Module):
    """Tied weights, a frozen layer, a parameter that nobody uses, one that only rank 0 uses, two
    dtypes, BatchNorm, checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.tied = nn.Linear(WIDTH, WIDTH)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.never = nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(WIDTH))
        self.low = nn.Linear(WIDTH, 5).to(torch.bfloat16)

    def forward(self, x: torch.Tensor, rank: int) -> torch.Tensor:
        x = checkpoint(lambda y: torch.tanh(self.tied(self.first(y))), x, use_reentrant=False)
        x = self.norm(self.frozen(x))
        if rank == 0:
            x = x * self.sometimes
        return self.low(x.to(torch.bfloat16)).float()


def _odd(rank: int) -> dict[str, object]:
    model = _Odd()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.5
    )
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught, thinwire.attach(model, optimizer) as sync:
        warnings.simplefilter("always")
        for step in range(5):
            x, y = batch(step, rank)
            nn.functional.cross_entropy(model(x, rank), y).backward()
            grads = {
                name: None if param.grad is None else param.grad.clone()
                for name, param in model.named_parameters()
            }
            optimizer.step()
            optimizer.zero_grad()
        sync.check()
        end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    return {
        "moved": moved,
        "grads": {n: g is None for n, g in grads.items()},
        "end": end,
        "warned": [str(w.message) for w in caught],
    }


def test_odd_models_train_alike_on_all_ranks():
    first, second = run_ranks(2, _odd)
    for name in first["end"]:
        assert torch.equal(first["end"][name], second["end"][name]), name
    assert not any(name.startswith("frozen") for name in first["moved"])
    assert first["grads"]["never"], "a parameter that no rank uses keeps no gradient"
    assert second["grads"]["never"]
    assert "never" not in first["moved"], "so weight decay leaves it alone, as in one process"
    assert not second["grads"]["sometimes"]
    assert {"first.weight", "sometimes", "low.weight", "norm.running_mean"} <= first["moved"]
    assert any("did not reach sometimes" in said for said in second["warned"])
    assert not first["warned"]


class _Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outside(checkpoint(self.inside, x, use_reentrant=True))


@pytest.mark.parametrize("head_trains", [True, False])
def test_reentrant_checkpointing_is_refused(head_trains):
    model = _Reentrant()
    model.outside.requires_grad_(head_trains)
    x, y = batch(0, 0)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)):
        loss = nn.functional.cross_entropy(model(x.requires_grad_()), y)
        with pytest.raises(AttachError, match="use_reentrant=False"):
            loss.backward()


def test_a_sparse_gradient_is_refused():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    with (
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)),
        pytest.raises(AttachError, match="sparse=False"),
    ):
        model(torch.tensor([1])).sum().backward()


def test_unfreezing_after_attach_is_refused():
    model = mlp()
    model[0].requires_grad_(False)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)):
        model[0].weight.requires_grad_(True)
        with pytest.raises(AttachError, match=r"'0.weight' was frozen"):
            loss_of(model, 0, 0).backward()


# -- world of one, set_to_none, compile
# -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(),
        Strategy(what=cast(), how=gather()),
        Strategy(every(2), on=deltas(outer=sgd(1.0))),
    ],
)
def test_a_world_of_one_works_and_sends_nothing(strategy):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    start = weights_of(model)
    with thinwire.attach(model, optimizer, strategy) as sync:
        train(model, optimizer, 0, range(4))
        sync.check()
        report = sync.report()
    assert report.sent_bytes == report.setup_bytes == 0
    assert not torch.equal(start, weights_of(model))
    if strategy == Strategy():
        other = mlp()
        train(other, torch.optim.SGD(other.parameters(), 0.1), 0, range(4))
        assert torch.equal(weights_of(model), weights_of(other))


def _zeroed(rank: int, set_to_none: bool) -> torch.Tensor:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with thinwire.attach(model, optimizer):
        for step in range(5):
            loss_of(model, step, rank).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    return weights_of(model)


def test_zeroed_gradients_are_as_good_as_none():
    assert torch.equal(run_ranks(2, _zeroed, True)[0], run_ranks(2, _zeroed, False)[1])


def _carried_over(rank: int) -> torch.Tensor:
    """Two backward passes of `every(1)` without zeroing: as in DDP, the means add up."""
    model = mlp(dtype=torch.float64)
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1)):
        loss_of(model, 0, rank).backward()
        loss_of(model, 1, rank).backward()
    return torch.cat([param.grad.reshape(-1) for param in model.parameters()])


def test_gradients_that_are_not_zeroed_add_up():
    model = mlp(dtype=torch.float64)
    for step in range(2):
        for rank in range(2):
            (loss_of(model, step, rank) / 2).backward()
    expected = torch.cat([param.grad.reshape(-1) for param in model.parameters()])
    for got in run_ranks(2, _carried_over):
        assert torch.allclose(got, expected, rtol=0, atol=1e-14)


def test_check_between_two_averages_says_that_ranks_differ_rightly():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, Strategy(every(3), on=parameters())) as sync:
        train(model, optimizer, 0, range(2))
        with pytest.raises(NotLandedError, match="2 steps of their own"):
            sync.check()
        train(model, optimizer, 0, range(2, 3))
        sync.check()
