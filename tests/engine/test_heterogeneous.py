"""Ranks that differ in batch, precision, codec and wire, in one run: weights are right, and what
cannot be is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import noise
from tests.how.flights import watched
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Codec, Driver, Exchange, Part, RankContext, Route, Spec
from thinwire.drive.local import run
from thinwire.errors import AttachError, DisagreementError
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, parameters, sgd
from thinwire.what import identity, uniform
from thinwire.when import every

ROWS = [3, 7, 5]  # of each rank's batch
NARROW = 1  # the rank that computes in bf16


def gradient_of(weight: Tensor, rank: int, step: int) -> Tensor:
    """Of the mean over the rank's rows, in its precision; in float64 like the weight."""
    x, y = (
        noise(ROWS[rank], 6, key=100 * step + rank),
        noise(ROWS[rank], key=100 * step + rank + 50),
    )
    leaf = weight.detach().clone().requires_grad_()
    kind = torch.bfloat16 if rank == NARROW else torch.float64
    ((x.to(kind) @ leaf.to(kind)).double() - y).square().mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def ran(results: dict[int, Any]) -> list[Any]:
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in sorted(results)]


@pytest.mark.parametrize("how", [native(), gather(), two_shot()], ids=repr)
@pytest.mark.parametrize("weigh", [False, True])
def test_the_mean_of_ranks_of_other_batch_and_precision_is_the_pooled_one(
    how: Route, weigh: bool
) -> None:
    start = noise(6, key=1)

    def work(driver: Driver) -> Tensor:
        weight = nn.Parameter(start.clone())
        rows = float(ROWS[driver.rank])
        optimizer = torch.optim.SGD([weight], 0.1)
        with thinwire.attach(
            nn.ParameterList([weight]),
            optimizer,
            Strategy(how=how),
            driver=driver,
            weight=1.0 if weigh else rows,
        ) as sync:
            if weigh:
                sync.weigh(rows)
            (weight * gradient_of(weight, driver.rank, 0)).sum().backward()
            assert weight.grad is not None
            return weight.grad.clone()

    pooled = sum(rows * gradient_of(start, rank, 0) for rank, rows in enumerate(ROWS)) / sum(ROWS)
    for got in ran(on_threads(3, work)):
        assert torch.allclose(got, torch.as_tensor(pooled), rtol=0, atol=4e-16)


@pytest.mark.parametrize("on", [deltas(sgd(1.0)), parameters()], ids=repr)
def test_so_is_the_mean_of_what_they_have_become_after_local_steps(on: deltas | parameters) -> None:
    start, lr = noise(6, key=1), 0.05

    def work(driver: Driver) -> Tensor:
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([weight], lr)
        strategy = Strategy(every(4), on=on)
        with thinwire.attach(
            nn.ParameterList([weight]), optimizer, strategy, driver=driver, weight=ROWS[driver.rank]
        ) as sync:
            for step in range(4):
                (weight * gradient_of(weight, driver.rank, step)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
        return weight.detach().clone()

    ends = []
    for rank in range(3):
        own = start.clone()
        for step in range(4):
            own -= lr * gradient_of(own, rank, step)
        ends.append(ROWS[rank] * own / sum(ROWS))
    for got in ran(on_threads(3, work)):
        assert torch.allclose(got, torch.stack(ends).sum(0), rtol=0, atol=1e-15)


def test_autocast_on_one_rank_only_trains_alike() -> None:
    def work(driver: Driver) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            for step in range(3):
                x = noise(4, 8, key=10 * step + driver.rank).float()
                with torch.autocast("cpu", torch.bfloat16, enabled=driver.rank == NARROW):
                    loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
        return torch.cat([param.detach().reshape(-1) for param in model.parameters()])

    flats = ran(on_threads(3, work))
    assert torch.equal(flats[0], flats[1])


def test_parameters_of_another_precision_on_one_rank_are_refused() -> None:
    def work(driver: Driver) -> None:
        model = nn.Linear(4, 4).to(torch.bfloat16 if driver.rank == NARROW else torch.float32)
        thinwire.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            Strategy(every(2), on=deltas()),
            driver=driver,
        )

    for result in on_threads(3, work).values():
        assert isinstance(result, DisagreementError)
        assert "torch.bfloat16" in str(result)
        assert "rank 1" in str(result)


def test_each_level_of_links_has_its_codec() -> None:
    """Two nodes of two: 8 bits inside a node, 2 between them, by the bytes of every message."""
    spec, world = Spec((Part("w", (64, 64), 0, "matrix"),), 0, 4096, torch.float32), (0, 1, 2, 3)
    inside, outside = uniform(8), uniform(2)
    sent: dict[bool, float] = {True: 0.0, False: 0.0}

    def look(rank: int, hop: Any) -> None:
        assert isinstance(hop, Exchange)
        for peer, payload in hop.send:
            sent[peer // 2 == rank // 2] += payload.numel()

    route = hierarchical((two_shot(), inside), two_shot(), 2)
    contexts = [RankContext(rank, world, 0, 0) for rank in world]
    flights = {
        r: route.carry(
            outside,
            noise(4096, key=r).float(),
            spec,
            route.init(outside, spec, contexts[r]),
            contexts[r],
        )
        for r in world
    }
    outcomes = run({r: watched(flight, partial(look, r)) for r, flight in flights.items()})
    assert all(torch.equal(outcomes[rank].total, outcomes[0].total) for rank in world)
    halves = spec.cut(2, 256)

    def whole(codec: Codec) -> int:
        return sum(codec.nbytes(half) or 0 for half in halves)

    assert sent[False] == 2 * whole(outside), (
        "each rank's half of its node's sum, a half of it there and back"
    )
    exact = 4 * 2048 * 4
    assert sent[True] == 4 * whole(inside) + exact, (
        "two nodes, halves there and sums back in 8 bits; then each rank's half of the total"
    )


def test_identity_stays_where_a_level_has_none() -> None:
    assert hierarchical(native(), two_shot(), 2).refuses(uniform(4)) is None
    assert Strategy(
        what=identity(), how=hierarchical((two_shot(), uniform(8)), native(), 2), on=gradients()
    )


def _of_two_devices(rank: int, strategy: Strategy) -> Tensor:
    device = torch.device("cuda" if rank else "cpu")
    model = nn.Linear(6, 4, dtype=torch.float64, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, strategy, weight=float(ROWS[rank])) as sync:
        start = model.weight.detach().clone()
        (model.weight * float(rank + 1)).sum().backward()
        optimizer.step()
        with sync.common_weights():
            return (start - model.weight.detach()).cpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device beside the CPU")
@pytest.mark.parametrize("on", [gradients(), parameters(), deltas(outer=sgd(1.0))], ids=repr)
@pytest.mark.parametrize("how", [native(), two_shot()], ids=repr)
def test_a_cpu_and_a_cuda_rank_have_the_pooled_mean_over_gloo(how: Route, on: Any) -> None:
    mean = 0.1 * (ROWS[0] * 1.0 + ROWS[1] * 2.0) / (ROWS[0] + ROWS[1])
    for moved in run_ranks(2, _of_two_devices, Strategy(how=how, on=on)):
        assert torch.allclose(moved, torch.full_like(moved, mean), rtol=0, atol=1e-7)


def _nccl_on_a_cpu(rank: int) -> str:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "get_backend", lambda _: "nccl")
        with pytest.raises(AttachError) as error:
            thinwire.attach(model, optimizer)
    return str(error.value)


def test_nccl_for_a_model_on_the_cpu_is_refused() -> None:
    assert "take backend='gloo'" in run_ranks(1, _nccl_on_a_cpu)[0]
