"""Dense Thinwire and DistributedDataParallel are the same arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from tests.engine.models import batch, mlp, weights_of
from tests.ranks import run_ranks
from thinwire.models.gpt import GPT, GPTConfig

STEPS = 20


def _gpt() -> nn.Module:
    torch.manual_seed(3)
    return GPT(GPTConfig(context=32, layers=2, heads=2, width=64))


def _gpt_loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    tokens = torch.randint(
        0, 256, (4, 33), generator=torch.Generator().manual_seed(1000 * step + rank)
    )
    return model(tokens[:, :-1], tokens[:, 1:])[1]


def _mlp_loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    x, y = batch(step, rank)
    return nn.functional.cross_entropy(model(x), y)


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of, rank: int
) -> list[torch.Tensor]:
    seen = []
    for step in range(STEPS):
        loss_of(model, step, rank).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(weights_of(model))
    return seen


def _pair(rank: int, make, loss_of) -> list[float]:
    """Largest relative difference of all weights after each step."""
    ours, theirs = make(), DistributedDataParallel(make())
    for _ in range(2):  # DDP settles its bucket layout in its second forward pass
        loss_of(theirs, 0, rank).backward()
        theirs.zero_grad()
    with thinwire.attach(ours, (optimizer := torch.optim.AdamW(ours.parameters(), 3e-3))) as sync:
        mine = _train(ours, optimizer, loss_of, rank)
        sync.check()
    yours = _train(theirs, torch.optim.AdamW(theirs.parameters(), 3e-3), loss_of, rank)
    return [
        float(((a - b).abs().amax() / b.abs().amax()).item())
        for a, b in zip(mine, yours, strict=True)
    ]


def _straight_mlp() -> nn.Module:
    return mlp(
        bias=False
    )  # gradients arrive in reverse order of registration: DDP's rebuilt layout is ours


def test_two_ranks_equal_ddp_bit_for_bit():
    for differences in run_ranks(2, _pair, _gpt, _gpt_loss):
        assert differences == [0.0] * STEPS


def test_three_ranks_equal_ddp_bit_for_bit_in_its_layout():
    for differences in run_ranks(3, _pair, _straight_mlp, _mlp_loss):
        assert differences == [0.0] * STEPS


def _three_gpt_gradients(rank: int) -> float:
    """AdamW amplifies rounding near zero gradients, so the mean gradients themselves are compared,
    on equal weights."""
    ours, theirs = _gpt(), DistributedDataParallel(_gpt())
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    worst = 0.0
    with thinwire.attach(ours, optimizer):
        for step in range(STEPS):
            _gpt_loss(ours, step, rank).backward()
            _gpt_loss(theirs, step, rank).backward()
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                worst = max(worst, float((a.grad - b.grad).norm() / b.grad.norm()))
            theirs.module.load_state_dict(ours.state_dict())
            optimizer.step()
            theirs.module.load_state_dict(ours.state_dict())
            optimizer.zero_grad()
            theirs.zero_grad()
    return worst


def test_three_ranks_equal_ddp_to_rounding_in_another_layout():
    worst = run_ranks(3, _three_gpt_gradients)
    assert max(worst) <= 1e-6


@pytest.mark.parametrize("slice_bytes", [None, 4096])
def test_slices_and_lanes_change_nothing_but_the_order_of_sums(slice_bytes):
    for differences in run_ranks(2, _sliced, slice_bytes):
        assert differences == 0.0


def _sliced(rank: int, slice_bytes: int | None) -> float:
    whole, cut = mlp(), mlp()
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-3) for model in (whole, cut)]
    with (
        thinwire.attach(whole, optimizers[0]),
        thinwire.attach(cut, optimizers[1], bucket_bytes=2000, slice_bytes=slice_bytes, lanes=3),
    ):
        for model, optimizer in zip((whole, cut), optimizers, strict=True):
            _train(model, optimizer, _mlp_loss, rank)
    return float((weights_of(whole) - weights_of(cut)).abs().max())
