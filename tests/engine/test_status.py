"""Parameters that some steps do not reach: no rank's gradient means no gradient, at every step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import thinwire
from tests.engine.models import DRAWING, WIDTH, batch, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire.core import Driver
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, momentum
from thinwire.strategy import Strategy
from thinwire.what import feedback, lowrank, sign, topk, uniform
from thinwire.when import delayed, every, warmup

HEADS = 3


class Heads(nn.Module):
    """A trunk and some heads, of which a step uses those that it is told."""

    def __init__(self) -> None:
        super().__init__()
        with DRAWING:
            torch.manual_seed(0)
            self.trunk = nn.Linear(WIDTH, WIDTH)
            self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(HEADS))

    def forward(self, x: Tensor, used: tuple[int, ...]) -> Tensor:
        y = torch.tanh(self.trunk(x))
        return sum((self.heads[i](y).sum() for i in used), y.sum() * 0.1)


def used_at(step: int, rank: int) -> tuple[int, ...]:
    """All heads at first; later some on all ranks, some on one rank, at times the first on none."""
    if step < 2:
        return (0, 1, 2)
    return ((), (1,), (1, 2), (2,) if rank == 1 else (), (0, 1) if rank == 0 else (1,))[step % 5]


def _steps(model: nn.Module, net: nn.Module, rank: int, steps: int) -> list[Tensor]:
    """AdamW moves whatever has a gradient, be it of zeros."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1)
    sync = None if model is not net else thinwire.attach(net, optimizer, bucket_bytes=1)
    seen = []
    for step in range(steps):
        model(batch(step, rank)[0], used_at(step, rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(weights_of(net))
    if sync is not None:
        sync.check()
        sync.close()
    return seen


def _beside_ddp(rank: int) -> list[bool]:
    """A parameter to a bucket on both sides, so that three numbers are added in the same order."""
    ours, theirs = Heads(), Heads()
    mine = _steps(ours, ours, rank, 12)
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1
    wrapped = DistributedDataParallel(theirs, find_unused_parameters=True, bucket_cap_mb=1e-6)
    yours = _steps(wrapped, theirs, rank, 12)
    return [torch.equal(a, b) for a, b in zip(mine, yours, strict=True)]


@pytest.mark.filterwarnings("ignore:this rank's first backward")
def test_three_ranks_equal_ddp_with_unused_parameters_bit_for_bit() -> None:
    for same in run_ranks(3, _beside_ddp):
        assert same == [True] * 12


STRATEGIES = {
    "dense": Strategy(),
    "topk": Strategy(what=feedback(topk(0.1)), how=gather()),
    "two-sided sign": Strategy(what=feedback(sign(16)), how=two_shot(back=feedback(sign(16)))),
    "sign, no feedback": Strategy(what=sign(16), how=gather()),
    "powersgd": Strategy(what=feedback(lowrank(1))),
    "delayed": Strategy(delayed(2, every(1)), feedback(uniform(4)), two_shot()),
    "accumulated": Strategy(every(2), feedback(topk(0.1)), gather()),
}


@pytest.mark.parametrize(
    ("name", "overlap"),
    [
        *((name, "backward") for name in STRATEGIES),
        *((name, "forward") for name in STRATEGIES if name != "delayed"),
    ],
)
def test_what_is_frozen_later_or_not_reached_by_any_rank_moves_no_more(
    name: str, overlap: Any
) -> None:
    strategy = STRATEGIES[name]

    def work(driver: Driver) -> tuple[list[Tensor], list[bool], bool]:
        model = Heads()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
        seen, none = [], []
        with thinwire.attach(
            model, optimizer, strategy, driver=driver, overlap=overlap, bucket_bytes=1000
        ) as sync:
            for step in range(16):
                if step == 8:
                    model.heads[1].requires_grad_(False)
                model(batch(step, driver.rank)[0], (0, 1, 2) if step < 8 else (1, 2)).backward()
                if (step + 1) % strategy.when.period == 0:
                    sync.land()
                    none.append(model.heads[0].weight.grad is None)
                    optimizer.step()
                    optimizer.zero_grad()
                seen.append(torch.cat([weights_of(model.heads[0]), weights_of(model.heads[1])]))
            sync.check()
            return seen, none, bool(weights_of(model).isfinite().all())

    results = on_threads(2, work)
    for seen, none, finite in results.values():
        still = 8 + strategy.when.delay + strategy.when.period - 1
        assert all(torch.equal(a, b) for a, b in pairwise(seen[still - 1 :]))
        assert not torch.equal(seen[0], seen[7])
        assert none[-1]
        assert finite
    assert torch.equal(results[0][0][-1], results[1][0][-1])


def _residual(sync: Any, name: str) -> Tensor:
    """A parameter's residual on this rank."""
    for bucket in sync.buckets:
        for part in bucket.slices:
            for path, leaf in part.state.walk():
                if path.endswith("residual") and leaf.spec is not None:
                    for extent in leaf.spec.extents():
                        if extent.part.name == name:
                            return leaf.flat[
                                extent.at : extent.at + extent.high - extent.low
                            ].clone()
    raise LookupError(name)


@pytest.mark.parametrize("when", [every(1), delayed(2, every(1))], ids=["at once", "delayed"])
def test_the_residual_of_what_no_rank_reaches_stays_as_it_was_and_nothing_is_lost(
    when: Any,
) -> None:
    """The sum of what has landed, of what is in the air and of all residuals is the sum of all
    gradients."""

    def work(driver: Driver) -> tuple[Tensor, Tensor, Tensor, bool]:
        model = Heads()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        strategy = Strategy(when, feedback(sign(16)), gather())
        param, landed, given, same = (
            model.heads[0].weight,
            torch.zeros(WIDTH),
            torch.zeros(WIDTH),
            [],
        )
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            for step in range(14):
                used = (1, 2) if step in (5, 6, 7, 12, 13) else (0, 1, 2)
                before = _residual(sync, "heads.0.weight")
                model(batch(step, driver.rank)[0], used).backward()
                if 0 in used:
                    y = torch.tanh(model.trunk(batch(step, driver.rank)[0]))
                    given += torch.autograd.grad(model.heads[0](y).sum(), param)[0].flatten() / 2
                if param.grad is not None:
                    landed += param.grad.flatten()
                if step in (6, 7, 13) and not when.delay:
                    same.append(torch.equal(before, _residual(sync, "heads.0.weight")))
                optimizer.step()
                optimizer.zero_grad()
            saved = sync.state_dict().items()
            landed += sum(
                value
                for key, value in saved
                if key.startswith("all|air/") and key.endswith("|heads.0.weight")
            )
            return landed, given, _residual(sync, "heads.0.weight"), all(same)

    results = on_threads(2, work)
    total = sum(given for _, given, _, _ in results.values())
    left = sum(residual for _, _, residual, _ in results.values())
    assert torch.allclose(results[0][0] + left, total, atol=1e-4)
    assert left.abs().max() > 1e-3
    assert all(same for *_, same in results.values())


def test_momentum_of_what_no_rank_reaches_stays_as_it_was() -> None:
    def work(driver: Driver) -> list[bool]:
        model = Heads()
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        strategy = Strategy(
            warmup(3, every(1)), feedback(sign(16)), two_shot(back=feedback(sign(16))), momentum()
        )
        out = []
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            for step in range(8):
                used = (1, 2) if step in (2, 5) else (0, 1, 2)
                (bucket,) = sync.buckets
                at = next(part for part in bucket.spec.parts if part.name == "heads.0.weight")
                before = [
                    bucket.state[key].flat[at.begin : at.end].clone()
                    for key in ("mean", "variance")
                ]
                weight = model.heads[0].weight.detach().clone()
                model(batch(step, driver.rank)[0], used).backward()
                if step in (2, 5):
                    after = [
                        bucket.state[key].flat[at.begin : at.end] for key in ("mean", "variance")
                    ]
                    optimizer.step()
                    out += [
                        all(map(torch.equal, before, after)),
                        torch.equal(weight, model.heads[0].weight),
                    ]
                else:
                    optimizer.step()
                    out.append(not torch.equal(weight, model.heads[0].weight))
                optimizer.zero_grad()
        return out

    for same in on_threads(2, work).values():
        assert same == [True] * 10


def test_a_launch_in_the_air_keeps_what_it_knows_through_a_checkpoint() -> None:
    def work(driver: Driver) -> list[Tensor | None]:
        model = Heads()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = Strategy(delayed(1, every(1)), on=gradients())
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            for used in ((0, 1, 2), (1, 2)):
                optimizer.zero_grad()
                model(batch(0, driver.rank)[0], used).backward()
            state = sync.state_dict()
        optimizer.zero_grad()
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            sync.load_state_dict(state)
            model(batch(0, driver.rank)[0], (0, 1, 2)).backward()
            return [head.weight.grad for head in model.heads]

    for first, second, _ in on_threads(2, work).values():
        assert first is None
        assert second is not None


def test_freezing_is_refused_on_local_steps() -> None:
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, Strategy(every(4), on=deltas())) as sync:
        model.heads[0].requires_grad_(False)
        model(batch(0, 0)[0], (1,)).backward()
        with pytest.raises(
            thinwire.errors.AttachError, match=r"'heads.0.bias' trained at attach and is frozen now"
        ):
            optimizer.step()
        sync.resume(0, 0)
