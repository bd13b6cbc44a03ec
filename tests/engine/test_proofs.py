"""The signatures, proved on whole training runs: 3 ranks (4 where there are two levels), three
buckets, in one process and over gloo.

Both drivers run the same generators, so wherever the sums' order is the route's own they must agree
bit for bit.
"""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.ranks import run_ranks
from tests.some import some
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.drive.local import Fabric
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, sgd
from thinwire.what import by_role, cast, feedback, identity, lowrank, threshold, topk, uniform
from thinwire.when import delayed, every

STEPS = 9
NEVER = 1e6  # a threshold that no gradient reaches: every payload is empty

PROOFS = {
    "powersgd over three buckets": (
        3,
        Strategy(every(1), feedback(lowrank(2)), native(), gradients()),
    ),
    "powersgd gathered": (3, Strategy(every(1), feedback(lowrank(2)), gather(), gradients())),
    "two-sided feedback": (
        3,
        Strategy(every(1), feedback(uniform(2)), two_shot(back=feedback(uniform(2))), gradients()),
    ),
    "delayed with feedback": (
        3,
        Strategy(delayed(2, every(1)), feedback(topk(0.1)), gather(), gradients()),
    ),
    "delayed powersgd": (
        3,
        Strategy(delayed(2, every(1)), feedback(lowrank(1)), gather(), gradients()),
    ),
    "two levels, a codec each": (
        4,
        Strategy(
            every(1),
            feedback(uniform(4)),
            hierarchical((two_shot(), cast("bf16")), gather(), node=2),
            gradients(),
        ),
    ),
    "two levels, exact inside": (
        4,
        Strategy(
            every(1),
            topk(0.2) >> cast("fp16"),
            hierarchical(native(), gather(), node=2),
            gradients(),
        ),
    ),
    "data-sized": (3, Strategy(every(1), feedback(threshold(0.02)), gather(), gradients())),
    "data-sized and empty": (
        3,
        Strategy(every(1), feedback(threshold(NEVER) >> cast()), gather(), gradients()),
    ),
    "data-sized, two shots": (
        3,
        Strategy(
            every(1),
            feedback(threshold(0.02)),
            two_shot(back=feedback(threshold(0.01))),
            gradients(),
        ),
    ),
    "each role its own way": (
        3,
        Strategy(
            every(1),
            by_role(matrix=feedback(lowrank(1)), vector=feedback(threshold(0.01))),
            gather(),
            gradients(),
        ),
    ),
    "deltas with feedback": (
        3,
        Strategy(
            every(3),
            feedback(topk(0.1) >> uniform(2, grid="rise")),
            gather(),
            deltas(outer=sgd(1.0)),
        ),
    ),
}


def _work(
    rank: int, strategy: Strategy, model: nn.Module, driver: Driver | None
) -> dict[str, object]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    options = {"driver": driver} if driver is not None else {"timeout": timedelta(seconds=30)}
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=1000, lanes=2, **options) as sync:
        assert len(sync.buckets) >= 3
        for step in range(STEPS):
            if step == 5 and rank == 1:
                sync.skip_step()  # one rank takes part with nothing new
            else:
                loss_of(model, step, rank).backward()
                optimizer.step()
            if strategy.on.clock == "backward" and step == 5 and rank == 1:
                optimizer.step()
            optimizer.zero_grad()
        sync.check()
        sync.state_dict()  # waits for what is in the air, whose flights still settle residuals
        leaves = [
            leaf.value
            for bucket in sync.buckets
            for part in bucket.slices
            for _, leaf in part.state.walk()
        ]
        residual = torch.cat([leaf.reshape(-1) for leaf in leaves]) if leaves else torch.zeros(1)
        return {
            "weights": weights_of(model),
            "residual": residual,
            "sent": sync.report().sent_bytes,
            "steps": sync.step,
        }


def _over_gloo(rank: int, strategy: Strategy) -> dict[str, object]:
    return _work(rank, strategy, _model(), None)


def _model() -> nn.Module:
    return mlp(depth=4)


def _in_one_process(world: int, strategy: Strategy) -> list[dict[str, object]]:
    fabric = Fabric(world)
    models = [_model() for _ in range(world)]
    results: list[dict[str, object]] = [{} for _ in range(world)]
    errors: list[BaseException] = []

    def rank_thread(rank: int) -> None:
        torch.set_num_threads(
            1
        )  # as the real ranks have it: a product split over threads rounds otherwise
        try:
            results[rank] = _work(rank, strategy, models[rank], fabric.driver(rank, lanes=2))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rank_thread, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def _native_somewhere(strategy: Strategy) -> bool:
    return "native" in repr(strategy.how)


@pytest.mark.parametrize("name", some(PROOFS, 7))
def test_proof(name: str):
    world, strategy = PROOFS[name]
    local = _in_one_process(world, strategy)
    real = run_ranks(world, _over_gloo, strategy)
    start = weights_of(_model())
    for rank, (a, b) in enumerate(zip(local, real, strict=True)):
        assert a["steps"] == b["steps"] == STEPS
        assert a["sent"] == pytest.approx(b["sent"])
        assert torch.equal(b["weights"], real[0]["weights"]), "every rank holds the same"
        if _native_somewhere(strategy):  # gloo's all-reduce adds in an order of its own
            assert torch.allclose(a["weights"], b["weights"], atol=1e-5), rank
        else:
            assert torch.equal(a["weights"], b["weights"]), rank
            assert torch.equal(a["residual"], b["residual"]), rank
        silent = name == "data-sized and empty"
        assert torch.equal(b["weights"], start) == silent
        assert not (silent and b["residual"].abs().max() == 0), (
            "what was never sent is in the residual"
        )


def test_every_lossy_proof_differs_from_dense():
    """The lossy branch ran: none of the proofs gives the weights of plain data parallelism."""
    dense = _in_one_process(3, Strategy(every(1), identity(), gather(), gradients()))[0]["weights"]
    for world, strategy in PROOFS.values():
        if world == 3:
            assert not torch.equal(_in_one_process(3, strategy)[0]["weights"], dense), strategy
