"""Landing in the forward pass: the same bits as landing in backward, and clear errors where
something reads too early."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.ranks import run_ranks
from thinwire import recipes
from thinwire.engine.overlap.priority import by_need
from thinwire.engine.overlap.stand_in import Late
from thinwire.errors import AttachError, NotLandedError
from thinwire.how import two_shot
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.on import deltas, gradients, momentum
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, uniform
from thinwire.when import every, warmup

SMALL = {"bucket_bytes": 2000, "slice_bytes": 512}
DENSE = Strategy(every(1), identity(), two_shot(), gradients())
LOSSY = Strategy(every(1), feedback(uniform(4, block=32)), two_shot(), gradients())
OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, 3e-3, weight_decay=0.1),
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "plain": lambda params: torch.optim.SGD(params, 1e-3),
    "rmsprop": lambda params: torch.optim.RMSprop(params, 1e-3, centered=True),
    "groups": lambda params: torch.optim.Adam(
        [{"params": params[::2], "lr": 1e-2}, {"params": params[1::2]}], 1e-3
    ),
    "tensor rate": lambda params: torch.optim.Adam(params, torch.tensor(1e-2), foreach=False),
}


def _tied() -> GPT:
    torch.manual_seed(3)
    return GPT(GPTConfig(context=16, layers=2, heads=2, width=32))


def _gpt_loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    tokens = torch.randint(
        0, 256, (4, 17), generator=torch.Generator().manual_seed(1000 * step + rank)
    )
    return model(tokens[:, :-1], tokens[:, 1:])[1]


def _run(
    rank: int,
    make,
    loss,
    optimizer_name: str,
    strategy: Strategy,
    overlap: str,
    steps: int = 5,
    passes: int = 1,
    **options,
) -> list[torch.Tensor]:
    """The user's loop with a scheduler; weights after each step, read where they are allowed to
    be."""
    model = make()
    optimizer = OPTIMIZERS[optimizer_name](list(model.parameters()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    seen = []
    with thinwire.attach(model, optimizer, strategy, overlap=overlap, **(SMALL | options)) as sync:
        for step in range(steps):
            if step % 2 == 0:
                # before the pass that lands the last step's means, or after the step
                optimizer.zero_grad()
            for micro in range(passes):
                loss(model, step * passes + micro, rank).backward()
            optimizer.step()
            scheduler.step()
            if step % 2 == 0:
                optimizer.zero_grad()
            if step % 3 == 2:
                sync.check()
                seen.append(weights_of(model))
        held = [param.grad for param in model.parameters()]
        assert (
            overlap == "backward"
            or any(isinstance(grad, Late) for grad in held)
            or all(grad is None for grad in held)
        )
    return [*seen, weights_of(model)]


def _both(rank: int, *args, overlap: str, **options) -> bool:
    plain = _run(rank, *args, "backward", **options)
    late = _run(rank, *args, overlap, **options)
    return len(plain) == len(late) and all(
        torch.equal(a, b) for a, b in zip(plain, late, strict=True)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_are_the_same_bits_whatever_the_optimizer(optimizer):
    assert _both(0, mlp, loss_of, optimizer, DENSE, overlap="forward")


def _cases(rank: int, overlap: str) -> list[bool]:
    twice = Strategy(every(2), feedback(uniform(4, block=32)), two_shot(), gradients())
    return [
        _both(rank, mlp, loss_of, "adamw", DENSE, overlap=overlap),
        _both(
            rank,
            _tied,
            _gpt_loss,
            "adamw",
            LOSSY,
            overlap=overlap,
            lanes=2,
            bucket_bytes=20_000,
            slice_bytes=8_000,
        ),
        _both(rank, mlp, loss_of, "sgd", twice, overlap=overlap, passes=2),
        _both(rank, mlp, loss_of, "sgd", recipes.powersgd(rank=2, start=2), overlap=overlap),
        _both(
            rank,
            mlp,
            loss_of,
            "plain",
            Strategy(warmup(2, every(1)), LOSSY.what, two_shot(), momentum((0.9, 0.95))),
            overlap=overlap,
        ),
    ]


@pytest.mark.parametrize("overlap", ["forward", "priority"])
def test_weights_are_the_same_bits_on_two_ranks(overlap):
    assert run_ranks(2, _cases, overlap) == [[True] * 5] * 2


@pytest.mark.long
@pytest.mark.parametrize("overlap", ["forward", "priority"])
def test_weights_are_the_same_bits_on_three_ranks(overlap):
    assert run_ranks(3, _cases, overlap) == [[True] * 5] * 3


def _reordered(rank: int) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
    """Slices planned by hand from the last bucket to the first: flights go in another order than
    buckets fill in."""
    plain = _run(rank, mlp, loss_of, "adamw", LOSSY, "backward", steps=6, lanes=2)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    with thinwire.attach(model, optimizer, LOSSY, overlap="priority", lanes=2, **SMALL) as sync:
        first = sync.steps.order
        sync.steps.order = tuple(reversed(first))
        for step in range(3):
            loss_of(model, step, rank).backward()
            optimizer.step()
            scheduler.step()
        sync.steps.order = by_need(
            [0.0] * len(sync.buckets),
            [1.0] * len(sync.buckets),
            [len(b.slices) for b in sync.buckets],
            [2, 0, 1, 3][: len(sync.buckets)],
        )
        for step in range(3, 6):
            loss_of(model, step, rank).backward()
            optimizer.step()
            scheduler.step()
    return torch.equal(plain[-1], weights_of(model)), first, sync.steps.order


def test_another_order_of_slices_gives_the_same_bits():
    for same, first, last in run_ranks(3, _reordered):
        assert same
        assert sorted(first) == sorted(last) != list(last)


def _planned(rank: int) -> tuple[int, ...]:
    model = mlp(depth=6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, DENSE, overlap="priority", **SMALL) as sync:
        first = sync.steps.order
        for step in range(5):
            loss_of(model, step, rank).backward()
            optimizer.step()
        assert sorted(sync.steps.order) == sorted(first)
        return sync.steps.order


def test_ranks_plan_one_order():
    orders = run_ranks(2, _planned)
    assert orders[0] == orders[1]


def test_validation_saving_and_closing_see_the_step(tmp_path):
    def run(overlap: str) -> list[torch.Tensor]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        seen = []
        with thinwire.attach(model, optimizer, DENSE, overlap=overlap, **SMALL):
            for step in range(4):
                optimizer.zero_grad()
                loss_of(model, step, 0).backward()
                optimizer.step()
                if step == 0:
                    with torch.no_grad():
                        seen.append(loss_of(model.eval(), 9, 0))
                    model.train()
                elif step == 1:
                    seen += [copy.deepcopy(tensor) for tensor in model.state_dict().values()]
                elif step == 2:
                    seen += [
                        state["exp_avg"].clone()
                        for state in optimizer.state_dict()["state"].values()
                    ]
        return [*seen, weights_of(model)]

    for a, b in zip(run("backward"), run("forward"), strict=True):
        assert torch.equal(a, b)


def test_what_reads_gradients_too_early_hears_so_and_land_lets_it():
    plain, late = mlp(), mlp()
    ours, theirs = (torch.optim.SGD(model.parameters(), 0.5) for model in (late, plain))
    with thinwire.attach(late, ours, DENSE, overlap="forward", **SMALL) as sync:
        for step in range(3):
            loss_of(late, step, 0).backward()
            with pytest.raises(NotLandedError, match=r"sync\.land"):
                nn.utils.clip_grad_norm_(late.parameters(), 1e-2)
            sync.land()
            nn.utils.clip_grad_norm_(late.parameters(), 1e-2)
            ours.step()
            ours.zero_grad()
            theirs.zero_grad()
            loss_of(plain, step, 0).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1e-2)
            theirs.step()
    assert torch.equal(weights_of(plain), weights_of(late))


class _Around(nn.Module):
    """Uses a layer's weight without calling the layer: always, or from its second pass on."""

    def __init__(self, later: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.later = nn.Linear(24, 24), nn.Linear(24, 5), later

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.later:
            self.later = False
            return self.outer(self.inner(x))
        return self.outer(nn.functional.linear(x, self.inner.weight, self.inner.bias))


def test_weights_used_around_their_module_land_with_the_model():
    def run(overlap: str) -> torch.Tensor:
        torch.manual_seed(0)
        return _run(
            0, lambda: _Around(later=False), loss_of, "sgd", DENSE, overlap, bucket_bytes=1
        )[-1]

    torch.manual_seed(0)
    assert torch.equal(run("backward"), run("forward"))


@pytest.mark.parametrize("zero", [True, False])
def test_weights_used_before_they_were_stepped_are_an_error(zero):
    model = _Around(later=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, DENSE, overlap="forward", bucket_bytes=1)
    loss_of(model, 0, 0).backward()
    optimizer.step()
    if zero:
        optimizer.zero_grad()
    with pytest.raises((AttachError, NotLandedError, RuntimeError), match=r"land|inplace"):
        loss_of(model, 1, 0).backward()
    sync.driver.close()


def test_steps_out_of_turn_are_errors():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(model, optimizer, DENSE, overlap="forward", **SMALL) as sync:
        loss_of(model, 0, 0).backward()
        optimizer.step()
        with pytest.raises(NotLandedError, match="twice"):
            optimizer.step()
        loss_of(model, 1, 0).backward()
        optimizer.zero_grad()
        with pytest.raises(NotLandedError, match="again before"):
            loss_of(model, 1, 0).backward()
        sync.land()


class _Counts(torch.optim.SGD):
    """An optimiser that counts its steps for a whole group."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        return super().step(closure)


def test_an_optimizer_with_a_clock_for_all_parameters_is_refused():
    model = mlp()
    optimizer = _Counts(model.parameters(), 0.1)
    optimizer.param_groups[0]["count"] = 0
    sync = thinwire.attach(model, optimizer, DENSE, overlap="forward", **SMALL)
    loss_of(model, 0, 0).backward()
    optimizer.step()
    with pytest.raises(AttachError, match="'count'"):
        loss_of(model, 1, 0)
    sync.driver.close()


def test_two_syncers_on_one_optimizer_do_not_cut_its_steps():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    local = Strategy(every(2), identity(), two_shot(), deltas())
    with (
        thinwire.attach(model, optimizer, DENSE, overlap="forward"),
        pytest.raises(AttachError, match="another syncer"),
    ):
        thinwire.attach(model, optimizer, local)
    with (
        thinwire.attach(model, optimizer, local),
        pytest.raises(AttachError, match="another syncer"),
    ):
        thinwire.attach(model, optimizer, DENSE, overlap="forward")
    assert "step" not in optimizer.__dict__ or not hasattr(optimizer.step, "thinwire_deferred")


def _stops(rank: int) -> str:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(
        model, optimizer, DENSE, overlap="priority", timeout=timedelta(seconds=2), **SMALL
    )
    loss_of(model, 0, rank).backward()
    optimizer.step()
    loss_of(model, 1, rank)
    if rank:
        sync.driver.abandon()
        return "left"
    try:
        loss_of(model, 1, rank).backward()
        optimizer.step()
        loss_of(model, 2, rank)
    except thinwire.errors.FlightError as error:
        sync.driver.abandon()
        return str(error)
    return "nothing was said"


def test_a_rank_that_stops_is_named_in_the_forward_pass():
    said, left = run_ranks(2, _stops)
    assert left == "left"
    assert "rank 1" in said


def test_parts_of_a_model_are_saved_and_loaded_with_their_step_taken():
    model, twin = mlp(), mlp()
    for net, overlap in ((model, "forward"), (twin, "backward")):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with thinwire.attach(net, optimizer, overlap=overlap):
            loss_of(net, 0, 0).backward()
            optimizer.step()
            optimizer.zero_grad()
            part = {key: value.clone() for key, value in net[0].state_dict().items()}
            net[2].load_state_dict(mlp(seed=5)[2].state_dict())
            loss_of(net, 1, 0)
        if net is model:
            seen = part
    assert all(torch.equal(seen[key], part[key]) for key in part)
    assert torch.equal(weights_of(model), weights_of(twin))


def test_the_step_is_none_of_the_forward_pass_that_it_is_taken_in():
    """Neither its inference mode nor its autocast changes what the optimiser computes, or leaves
    it."""
    weights = []
    for overlap in ("backward", "forward"):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        with thinwire.attach(model, optimizer, overlap=overlap):
            for step in range(4):
                loss_of(model, step, 0).backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    loss_of(model, 9, 0)
        weights.append(weights_of(model))
    assert torch.equal(*weights)


def test_weights_written_before_their_step_is_taken_and_step_hooks_are_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, overlap="forward")
    loss_of(model, 0, 0).backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight.clamp_(-0.01, 0.01)
    with pytest.raises(AttachError, match=r"'0.weight' was written after optimizer.step\(\)"):
        loss_of(model, 1, 0)
    sync.driver.close()
    other = mlp()
    hooked = torch.optim.SGD(other.parameters(), 0.1)
    hooked.register_step_pre_hook(lambda *_: None)
    with pytest.raises(AttachError, match="step hooks of its own"):
        thinwire.attach(other, hooked, overlap="forward")
