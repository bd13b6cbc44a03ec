"""Shards of FSDP2 as a source."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

import thinwire
from tests.ranks import run_ranks
from tests.shards import BYTES, Net, loss_of, mesh_of, sharded, shards_of, train, whole_of
from thinwire import Strategy, recipes
from thinwire.engine.shards import local_of
from thinwire.errors import NonFiniteError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, parameters
from thinwire.what import by_role, feedback, topk, uniform
from thinwire.when import delayed, every

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept whole": {"reshard_after_forward": False},
    "bf16": {
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    },
}


def _against_native(
    rank: int, replicas: int, shards: int, variant: str, passes: int, odd: bool
) -> tuple[Tensor, Tensor, int]:
    mesh, options = mesh_of(replicas, shards), VARIANTS[variant]
    made = []
    for ours in (False, True):
        model = sharded(mesh["shard"] if ours else mesh, Net(odd=odd), **options)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        buckets = 0
        if ours:
            sync = thinwire.attach(model, optimizer, Strategy(), bucket_bytes=BYTES)
            buckets = len(sync.buckets)
        made.append(train(model, optimizer, rank, range(5), passes))
        if ours:
            sync.close()
    return made[0], made[1], buckets


@pytest.mark.parametrize(
    ("replicas", "shards", "variant", "passes", "odd"),
    [
        pytest.param(2, 2, "plain", 1, False, marks=pytest.mark.long),
        (2, 2, "kept whole", 2, True),
        pytest.param(2, 2, "bf16", 2, False, marks=pytest.mark.long),
        pytest.param(2, 3, "plain", 1, False, marks=pytest.mark.long),
        pytest.param(3, 2, "plain", 1, True, marks=pytest.mark.long),
    ],
)
def test_identity_is_native_hsdp_bit_for_bit(
    replicas: int, shards: int, variant: str, passes: int, odd: bool
) -> None:
    made = run_ranks(replicas * shards, _against_native, replicas, shards, variant, passes, odd)
    for theirs, ours, buckets in made:
        assert buckets >= 3
        if replicas == 3:  # FSDP divides by 6 once, and we by 2 and by 3
            assert (theirs - ours).abs().max() < 1e-6
        else:
            assert torch.equal(theirs, ours), (theirs - ours).abs().max()


ROWS = Strategy(what=feedback(by_role(matrix=uniform(4, block="row"))), how=gather())
STRATEGIES: dict[str, Strategy] = {
    "rows in 4 bits": ROWS,
    "blocks in 4 bits": Strategy(what=feedback(uniform(4)), how=two_shot()),
    "top-k": Strategy(what=feedback(topk(4, 32)), how=gather()),
    "delayed": Strategy(delayed(1, every(1))),
    "two passes": Strategy(every(2)),
    "deltas": Strategy(every(2), uniform(8), two_shot(), deltas()),
    "parameters": Strategy(every(3), on=parameters()),
    "PowerSGD": recipes.powersgd(rank=2),
    "streaming": recipes.streaming_diloco(period=4, fragments=2, tau=1),
    "signs": Strategy(on=gradients(then="sign")),
}
NEAR = {"rows in 4 bits", "delayed", "two passes", "parameters"}
"""Those of which shards change no more than the order of sums."""


def _as_unsharded(rank: int, replicas: int, shards: int, names: list[str]) -> dict[str, Any]:
    """By strategy: weights by shards, and by whole replicas among one rank of each."""
    mesh, made = mesh_of(replicas, shards), {}
    for name in names:
        strategy = STRATEGIES[name]
        rates = {"lr": 0.05} if name != "signs" else {"lr": 1e-3}
        # 1. by shards
        model: Any = sharded(mesh["shard"])
        optimizer = torch.optim.SGD(model.parameters(), **rates)
        sync = thinwire.attach(model, optimizer, strategy, bucket_bytes=BYTES, buffers="local")
        passes = 2 if name == "two passes" else 1
        for step in range(6):
            for micro in range(passes):
                loss_of(model, step * passes + micro, rank).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            ours = whole_of(model)
        sync.close()
        # 2. whole: every rank takes the mean of the losses of its replica's ranks
        plain = Net()
        optimizer = torch.optim.SGD(plain.parameters(), **rates)
        group, first = mesh["replicate"].get_group(), rank // shards * shards
        whole = thinwire.attach(plain, optimizer, strategy, group=group, bucket_bytes=BYTES * 2)
        for step in range(6):
            for micro in range(passes):
                losses = [loss_of(plain, step * passes + micro, first + i) for i in range(shards)]
                (sum(losses) / shards).backward()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with whole.common_weights():
            theirs = torch.cat([param.detach().reshape(-1) for param in plain.parameters()])
        whole.close()
        made[name] = ours, theirs
    return made


@pytest.mark.parametrize(
    ("replicas", "shards", "names"),
    [
        (2, 2, ["rows in 4 bits", "deltas"]),
        pytest.param(2, 2, list(STRATEGIES), marks=pytest.mark.long),
        pytest.param(2, 3, list(STRATEGIES), marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_strategy_by_shards_is_the_strategy_by_whole_replicas(
    replicas: int, shards: int, names: list[str]
) -> None:
    made = run_ranks(replicas * shards, _as_unsharded, replicas, shards, names, timeout=240)
    for name in names:
        first, theirs = made[0][name]
        assert bool(first.isfinite().all())
        for each in made[1:]:
            assert torch.equal(each[name][0], first), name  # replicas hold the same bits
        off = float((first - theirs).abs().max())
        assert off < (1e-5 if name in NEAR else 0.1), (name, off)


def _one_bad_shard(rank: int, policy: str, strategy: Strategy) -> tuple[str, Tensor]:
    """A gradient, or weight, that is not finite in one shard of one replica."""
    model: Any = sharded(mesh_of(2, 2)["shard"])
    bias, spoils = model.head.bias, [False]

    def spoil(_: Tensor) -> None:  # before the syncer's own hook
        if spoils[0]:
            local_of(bias.grad).fill_(torch.nan)

    bias.register_post_accumulate_grad_hook(spoil)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, strategy, nonfinite=policy, bucket_bytes=BYTES)  # type: ignore[arg-type]
    text = ""
    for step in range(4):
        spoils[0] = step == 1 and rank == 3
        loss_of(model, step, rank).backward()
        try:
            optimizer.step()
        except NonFiniteError as error:
            text = str(error)
            break
        optimizer.zero_grad()
    sync.close()
    return text, shards_of(model)


@pytest.mark.parametrize(
    ("policy", "strategy"),
    [
        ("raise", Strategy()),
        pytest.param("raise", Strategy(every(2), on=deltas()), marks=pytest.mark.long),
        pytest.param("skip", ROWS, marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_finite_in_one_shard_ends_the_step_on_all(
    policy: str, strategy: Strategy
) -> None:
    made = run_ranks(4, _one_bad_shard, policy, strategy)
    if policy == "raise":
        assert all("not finite" in text for text, _ in made)
        assert "another shard of this replica" in made[0][0]
        assert "head" in made[1][0]
    else:
        assert not any(text for text, _ in made)
        assert torch.equal(made[0][1], made[2][1])
        assert torch.equal(made[1][1], made[3][1])
    assert all(bool(weights.isfinite().all()) or i == 3 for i, (_, weights) in enumerate(made))


def _validates(rank: int, strategy: Strategy) -> tuple[Tensor, Tensor]:
    """Weights after training with and without a validation between steps: FSDP keeps the root's
    parameters whole after a forward pass without a backward pass."""
    made = []
    for validates in (False, True):
        model: Any = sharded(mesh_of(2, 2)["shard"])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with thinwire.attach(model, optimizer, strategy, bucket_bytes=BYTES) as sync:
            for step in range(5):
                if validates:
                    with torch.no_grad(), sync.common_weights():
                        loss_of(model, 99, 0)
                loss_of(model, step, rank).backward()
                if validates and not sync.session.strategy.adds_landed:
                    with torch.no_grad():  # a mean that has landed stays where it is
                        loss_of(model, 99, 0)
                    model.reshard()  # else FSDP's root would miss the step
                optimizer.step()
                optimizer.zero_grad()
            if validates:
                with torch.no_grad():
                    loss_of(model, 99, 0)
                sync.watch.problems()
        made.append(shards_of(model))
    return made[0], made[1]


@pytest.mark.parametrize(
    "strategy",
    [Strategy(every(2), on=deltas()), pytest.param(ROWS, marks=pytest.mark.long)],
)
@pytest.mark.filterwarnings("ignore")
def test_validation_changes_nothing(strategy: Strategy) -> None:
    for without, with_it in run_ranks(4, _validates, strategy):
        assert torch.equal(without, with_it)


def _twice_without_zeroing(rank: int) -> list[Tensor]:
    """`.grad` after two passes without zero_grad: this pass's mean on top of the last one's."""
    made = []
    for ours in (False, True):
        mesh = mesh_of(2, 2)
        model: Any = sharded(mesh["shard"] if ours else mesh)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if ours:
            strategy = Strategy(what=feedback(uniform(8)), how=two_shot())
            assert not strategy.adds_landed
            thinwire.attach(model, optimizer, strategy, bucket_bytes=BYTES)
        for step in range(2):
            loss_of(model, step, rank).backward()
        made.append(torch.cat([local_of(p.grad).reshape(-1) for p in model.parameters()]))
    return made


def test_a_landed_mean_is_not_sent_again() -> None:
    for theirs, ours in run_ranks(4, _twice_without_zeroing):
        assert float((theirs - ours).abs().max()) < 0.02 * float(theirs.abs().max())
