"""Nothing is lost: killed and resumed is never stopped, bit for bit; another world size keeps the
sum of residuals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import thinwire
from tests.engine.models import mlp, train, weights_of
from tests.ranks import run_ranks
from tests.some import some
from thinwire import Strategy
from thinwire.errors import CheckpointError
from thinwire.how import gather, gossip, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, nesterov, parameters, sgd
from thinwire.what import (
    by_role,
    cast,
    clip,
    dgc,
    ef21,
    feedback,
    identity,
    lowrank,
    on_change,
    randomk,
    sampled,
    topk,
    uniform,
)
from thinwire.when import delayed, every, staggered, warmup

SAVED, KILLED, ALL = 5, 6, 11

STRATEGIES = {
    "gradient": Strategy(
        every(1),
        feedback(topk(0.1) >> uniform(4, rounding="stochastic"), decay=0.9),
        gather(),
        gradients(),
    ),
    "accumulated": Strategy(every(2), feedback(randomk(0.2)), native(), gradients()),
    "two-sided": Strategy(
        warmup(3, every(1)), feedback(uniform(2)), two_shot(back=feedback(uniform(4))), gradients()
    ),
    "powersgd": Strategy(
        every(1), by_role(matrix=feedback(lowrank(2)), vector=cast("bf16")), native(), gradients()
    ),
    "delta": Strategy(every(3), feedback(uniform(4)), gather(), deltas(outer=nesterov(0.6, 0.9))),
    "streaming": Strategy(
        delayed(2, staggered(2, every(4))),
        uniform(4),
        two_shot(),
        deltas(outer=nesterov(0.6, 0.9), alpha=0.5),
    ),
    "delayed": Strategy(delayed(2, every(1)), feedback(topk(0.1)), gather(), gradients()),
    "parameters": Strategy(every(5), identity(), native(), parameters()),
    "stored": Strategy(every(1), feedback(topk(0.1), store="bf16"), gather(), gradients()),
    "stored in 8 bits": Strategy(
        every(1), feedback(topk(0.1), store="int8"), gather(), gradients()
    ),
    "8 bits on both sides": Strategy(
        every(1),
        feedback(uniform(2)),
        two_shot(back=feedback(uniform(2), store="int8")),
        gradients(),
    ),
    "moving decay": Strategy(
        delayed(2, every(1)), feedback(topk(0.1), start=2, ramp=9, reset=5), gather(), gradients()
    ),
    "clipped": Strategy(
        every(1), clip(feedback(topk(0.1)), times=0.9, window=4), gather(), gradients()
    ),
    "sampled": Strategy(
        every(2), feedback(sampled(0.1, band=1.2)), gather(), deltas(outer=nesterov(0.6, 0.9))
    ),
    "dgc": Strategy(every(1), dgc(topk(0.1)), gather(), gradients()),
    "ef21": Strategy(every(1), ef21(topk(0.1)), gather(), gradients()),
    "noloco": Strategy(every(3), identity(), gossip(), parameters(outer=sgd(0.7, 0.5), pull=0.8)),
    "on_change": Strategy(every(1), on_change(topk(0.1), xi=0.5, longest=2), gather(), gradients()),
}


def _start(strategy: Strategy, seed: int):
    model = mlp(seed=seed)  # another start for a resumed run: all must come from the checkpoint
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return (
        model,
        optimizer,
        thinwire.attach(model, optimizer, strategy, bucket_bytes=2000, slice_bytes=1500, lanes=2),
    )


def _passes(strategy: Strategy) -> int:
    return (
        strategy.when.period
        if strategy.on.clock == "backward" and not isinstance(strategy.when, warmup)
        else 1
    )


def _whole_run(rank: int, strategy: Strategy) -> tuple[torch.Tensor, torch.Tensor]:
    model, optimizer, sync = _start(strategy, 0)
    train(model, optimizer, rank, range(ALL), _passes(strategy))
    with sync.common_weights():
        common = weights_of(model)
    own = weights_of(model)
    sync.close()
    return own, common


def _killed_run(rank: int, strategy: Strategy, folder: Path) -> None:
    model, optimizer, sync = _start(strategy, 0)

    def save(step: int) -> None:
        if step == SAVED:
            dcp.save({"model": model.state_dict(), "sync": sync}, checkpoint_id=folder)
            if rank == 0:
                torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        if step == KILLED:
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    train(model, optimizer, rank, range(ALL), _passes(strategy), save)


def _resumed_run(rank: int, strategy: Strategy, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model, optimizer, sync = _start(strategy, 1)
    _load(model, optimizer, sync, folder)
    train(model, optimizer, rank, range(SAVED + 1, ALL), _passes(strategy))
    with sync.common_weights():
        common = weights_of(model)
    own = weights_of(model)
    sync.close()
    return own, common


def _load(model, optimizer, sync, folder: Path) -> None:
    """Rank 0's model and optimiser, as users save them, then what is each rank's own."""
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    sync.load_checkpoint(folder)


@pytest.mark.parametrize("name", some(STRATEGIES, 6))
def test_killed_and_resumed_is_never_stopped(name, tmp_path):
    strategy = STRATEGIES[name]
    never = run_ranks(2, _whole_run, strategy)
    assert run_ranks(2, _killed_run, strategy, tmp_path) == [-signal.SIGKILL] * 2
    again = run_ranks(2, _resumed_run, strategy, tmp_path)
    for (own, common), (own_again, common_again) in zip(never, again, strict=True):
        assert torch.equal(own, own_again)
        assert torch.equal(common, common_again)


# -- another world size
# -----------------------------------------------------------------------------------------------

RESHARDED = {
    "gather": Strategy(every(1), feedback(topk(0.1), decay=0.9), gather(), gradients()),
    "native": Strategy(every(1), feedback(lowrank(1)), native(), gradients()),
    "two-sided": Strategy(
        every(1),
        feedback(uniform(2, block=64)),
        two_shot(back=feedback(uniform(2, block=64))),
        gradients(),
    ),
    "delta": Strategy(every(2), feedback(uniform(2)), gather(), deltas(outer=nesterov(0.6, 0.9))),
    "delayed": Strategy(delayed(2, every(1)), feedback(topk(0.1)), gather(), gradients()),
    "dgc": Strategy(every(1), dgc(topk(0.1)), gather(), gradients()),
    "ef21": Strategy(every(1), ef21(topk(0.1)), gather(), gradients()),
    "on_change": Strategy(every(1), on_change(uniform(4), xi=0.3), gather(), gradients()),
}


def _sums(sync) -> dict[str, torch.Tensor]:
    """This rank's share of each residual, by path and parameter, laid out whole, in float64."""
    sums: dict[str, torch.Tensor] = {}
    sizes = {name: param.numel() for name, param in sync.model.named_parameters()}
    for key, value in sync.state_dict().items():
        scope, path, *rest = key.split("|", 3)
        if path.endswith(("residual", "velocity", "known")) and scope != "all":
            span, part = rest
            low, high = map(int, span.split(":"))
            sums.setdefault(f"{path} {part}", torch.zeros(sizes[part], dtype=torch.float64))[
                low:high
            ] += value.double()
    return sums


def _save_residuals(rank: int, strategy: Strategy, folder: Path):
    model, optimizer, sync = _start(strategy, 0)
    train(model, optimizer, rank, range(6))
    dcp.save({"sync": sync}, checkpoint_id=folder)
    sums = _sums(sync)
    sync.close()
    return sums, sync.step


def _load_elsewhere(rank: int, strategy: Strategy, folder: Path):
    model, optimizer, sync = _start(strategy, 1)
    sync.load_checkpoint(folder)
    sums, step = _sums(sync), sync.step
    train(model, optimizer, rank, range(6, 9))
    sync.check() if strategy.on.clock == "backward" else None
    sync.close()
    return sums, step


@pytest.mark.parametrize("name", some(RESHARDED, 4))
def test_another_world_keeps_the_sum_of_residuals(name, tmp_path):
    strategy = RESHARDED[name]
    before = run_ranks(3, _save_residuals, strategy, tmp_path)
    keys = {key for sums, _ in before for key in sums}
    for world in (2, 4):
        after = run_ranks(world, _load_elsewhere, strategy, tmp_path)
        assert {step for _, step in before + after} == {6}
        lost = 0.0
        for key in keys:
            old = sum(sums[key] for sums, _ in before if key in sums)
            new = sum(sums[key] for sums, _ in after if key in sums)
            assert torch.equal(old, new), key
            lost += float(old.abs().max())
        assert lost > 0, "some residual is not zero"


def test_hierarchical_residuals_survive_another_number_of_nodes(tmp_path):
    strategy = Strategy(
        every(1), feedback(uniform(2)), hierarchical(native(), gather(), node=2), gradients()
    )
    before = run_ranks(4, _save_residuals, strategy, tmp_path)
    after = run_ranks(2, _load_at_two, strategy, tmp_path)
    keys = {key for sums, _ in before for key in sums}
    assert keys
    for key in (
        keys
    ):  # one node of two ranks is left, so each element has one owner and float32 must hold the sum
        old, new = (
            sum(sums[key] for sums, _ in results if key in sums) for results in (before, after)
        )
        assert torch.equal(old.float(), new.float()), key
        assert (old - new).abs().max() <= 2**-24 * old.abs().max()


def _load_at_two(rank: int, strategy: Strategy, folder: Path):
    _, _, sync = _start(strategy, 1)
    sync.load_checkpoint(folder)
    sums = _sums(sync)
    sync.close()
    return sums, sync.step


# -- what does not fit
# ------------------------------------------------------------------------------------------------


def test_a_state_of_another_strategy_model_or_half_a_world_is_refused(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, Strategy()) as sync:
        state = sync.state_dict()
    other = mlp(depth=2)
    with (
        thinwire.attach(other, torch.optim.SGD(other.parameters(), 0.1)) as sync,
        pytest.raises(CheckpointError, match="another model"),
    ):
        sync.load_state_dict(state)
    with (
        thinwire.attach(model, optimizer, Strategy(every(2))) as sync,
        pytest.raises(CheckpointError, match="another strategy"),
    ):
        sync.load_state_dict(state)
    with (
        thinwire.attach(model, optimizer) as sync,
        pytest.raises(CheckpointError, match="no state of a syncer"),
    ):
        sync.load_state_dict({})


def _only_own(rank: int, strategy: Strategy, folder: Path):
    _, _, sync = _start(strategy, 0)
    state = sync.state_dict()
    torch.save(state, folder / f"{rank}.pt")
    sync.close()


def _load_one(rank: int, strategy: Strategy, folder: Path) -> str:
    _, _, sync = _start(strategy, 0)
    try:
        sync.load_state_dict(torch.load(folder / "0.pt", weights_only=True))
    except CheckpointError as error:
        return str(error)
    finally:
        sync.close()
    return ""


def test_another_world_wants_the_state_of_every_rank(tmp_path):
    strategy = RESHARDED["gather"]
    run_ranks(3, _only_own, strategy, tmp_path)
    for said in run_ranks(2, _load_one, strategy, tmp_path):
        assert "lacks those of ranks [1, 2]" in said
