"""What a step launches and what it lands, against the same recurrence written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import WIDTH, loss_of, mlp, train, weights_of
from tests.ranks import run_ranks
from thinwire import Strategy
from thinwire.how import gather
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.what import feedback, topk
from thinwire.when import delayed, every, warmup

WORLD = 2


@pytest.mark.parametrize(("tau", "n"), [(1, 1), (2, 1), (4, 2)])
def test_delayed_is_the_recurrence(tau, n):
    """w(t+1) = w(t) - eta · clip(mean g(t - tau)), and nothing in the first tau steps."""
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gradients_then, expected = [], []
    for step in range(8):
        for rank in range(WORLD):
            for micro in range(n):
                (loss_of(model, step * n + micro, rank) / WORLD).backward()
        gradients_then.append([param.grad.clone() for param in model.parameters()])
        optimizer.zero_grad()
        if step >= tau // n:
            for param, grad in zip(
                model.parameters(), gradients_then[step - tau // n], strict=True
            ):
                param.grad = grad.clone()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        expected.append(weights_of(model))
    assert torch.equal(expected[tau // n - 1], weights_of(mlp(dtype=torch.float64)))
    for seen in run_ranks(WORLD, _delayed, tau, n):
        for got, want in zip(seen, expected, strict=True):
            assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_local_sgd_averages_what_the_ranks_have_become():
    start = weights_of(mlp(dtype=torch.float64))
    mean = sum(_locally(start, rank, range(3)) for rank in range(WORLD)) / WORLD
    own = [_locally(mean, rank, range(3, 5)) for rank in range(WORLD)]
    for rank, (got, common) in enumerate(
        run_ranks(WORLD, _local, Strategy(every(3), on=parameters()), 5)
    ):
        assert torch.allclose(got, own[rank], rtol=0, atol=1e-12)
        assert torch.allclose(common, sum(own) / WORLD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("outer", [sgd(1.0), sgd(0.7, 0.5), nesterov(0.6, 0.9)])
def test_diloco_is_an_outer_step_on_the_mean_delta(outer):
    anchor = weights_of(mlp(dtype=torch.float64))
    reference = nn.Parameter(anchor.clone())
    momentum = outer.momentum
    torch_outer = torch.optim.SGD(
        [reference], outer.lr, momentum=momentum, nesterov=isinstance(outer, nesterov)
    )
    for first in (0, 4):
        ends = [
            _locally(reference.detach(), rank, range(first, first + 4)) for rank in range(WORLD)
        ]
        reference.grad = reference.detach() - sum(ends) / WORLD
        torch_outer.step()
    for got, common in run_ranks(WORLD, _local, Strategy(every(4), on=deltas(outer=outer)), 8):
        assert torch.allclose(got, reference.detach(), rtol=0, atol=1e-12)
        assert torch.equal(common, got)


def test_a_delayed_delta_merges_with_what_was_done_meanwhile():
    """Two fragments would be two buckets; here one: launched at step 4, landed at 6, alpha 0.25."""
    start = weights_of(mlp(dtype=torch.float64))
    at_launch = [_locally(start, rank, range(4)) for rank in range(WORLD)]
    at_landing = [_locally(start, rank, range(6)) for rank in range(WORLD)]
    anchor = start - 0.8 * (start - sum(at_launch) / WORLD)
    strategy = Strategy(delayed(2, every(4)), on=deltas(outer=sgd(0.8), alpha=0.25))
    for rank, (got, common) in enumerate(run_ranks(WORLD, _local, strategy, 6)):
        assert torch.allclose(common, anchor, rtol=0, atol=1e-12)
        assert torch.allclose(got, 0.25 * at_landing[rank] + 0.75 * anchor, rtol=0, atol=1e-12)


def test_close_lands_what_is_in_flight():
    start = weights_of(mlp(dtype=torch.float64))
    mean = sum(_locally(start, rank, range(4)) for rank in range(WORLD)) / WORLD
    for before, after in run_ranks(WORLD, _closed):
        assert not torch.allclose(before, after)
        assert torch.allclose(after, mean, rtol=0, atol=1e-12)


def test_warmup_is_dense_then_thin():
    dense = 4 * weights_of(mlp()).numel()
    for sent in run_ranks(2, _warm):
        assert sent[:3] == [dense, 2 * dense, 3 * dense]
        assert 0 < sent[3] - sent[2] < dense / 10


def _delayed(rank: int, tau: int, n: int) -> list[torch.Tensor]:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    with thinwire.attach(model, optimizer, Strategy(delayed(tau, every(n)))):
        train(model, optimizer, rank, range(8), n, lambda _: seen.append(weights_of(model)))
    return seen


def _local(rank: int, strategy: Strategy, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy) as sync:
        train(model, optimizer, rank, range(steps))
        with sync.common_weights():
            common = weights_of(model)
        return weights_of(model), common


def _locally(start: torch.Tensor, rank: int, steps: range) -> torch.Tensor:
    model = mlp(dtype=torch.float64)
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    train(model, torch.optim.SGD(model.parameters(), 0.1), rank, steps)
    return weights_of(model)


def _closed(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(
        model, optimizer, Strategy(delayed(2, every(4)), on=deltas(outer=sgd(1.0)))
    )
    train(model, optimizer, rank, range(5))  # launched at step 4, due at step 6
    before = weights_of(model)
    sync.close()
    return before, weights_of(model)


def _warm(rank: int) -> list[float]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sent = []
    strategy = Strategy(warmup(3, every(1)), feedback(topk(0.05)), gather())
    with thinwire.attach(model, optimizer, strategy) as sync:
        train(
            model, optimizer, rank, range(6), each=lambda _: sent.append(sync.report().sent_bytes)
        )
        residuals = [
            leaf.value.any()
            for bucket in sync.buckets
            for part in bucket.slices
            for _, leaf in part.state.walk()
        ]
        assert any(residuals)
    return sent


def _buffers(rank: int, policy: str) -> torch.Tensor:
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5))
    with thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1), buffers=policy) as sync:
        for step in range(3):
            loss_of(model, step, rank).backward()
        sync.check()
    return model[0].running_mean.clone()


def test_buffers_are_rank_0s_or_each_ranks_own():
    first, second = run_ranks(2, _buffers, "broadcast")
    assert torch.equal(first, second)
    first, second = run_ranks(2, _buffers, "local")
    assert not torch.equal(first, second)
