"""What users do with an attached model beside training it: copy it, average it, save it, compile
it, convert it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import thinwire
from tests.engine.models import loss_of, mlp, weights_of
from tests.ranks import run_ranks
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Driver
from thinwire.engine.packed_json import pack_json, unpack_json
from thinwire.engine.saved import META
from thinwire.engine.saved_facts import hash_json
from thinwire.errors import AttachError, NotLandedError
from thinwire.how import gather
from thinwire.what import feedback, topk

OVERLAPS = ("backward", "forward", "priority")
START = mlp()  # ranks that are threads share the generator that layers draw from
SMALL: dict[str, Any] = {"bucket_bytes": 2000}


def saved(model: nn.Module) -> nn.Module:
    """Through `torch.save`, as a whole model."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # what this test has just written


def averaged(model: nn.Module) -> nn.Module:
    return AveragedModel(model).module


COPIES = {"deepcopy": copy.deepcopy, "AveragedModel": averaged, "torch.save": saved}


def train(
    rank: int, driver: Driver | None, overlap: str, copied: Any, strategy: Strategy
) -> list[Tensor]:
    """Weights after each step, as a copy has them that is taken at once, and the loss that the copy
    tells; then the model's own."""
    model = copy.deepcopy(START)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    seen = []
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, overlap=overlap, **SMALL
    ) as sync:
        assert len(sync.buckets) > 1
        for step in range(4):
            loss_of(model, step, rank).backward()
            optimizer.step()
            if step < 3:
                twin = copied(model)
                assert all(
                    p is not q and p.grad is None
                    for p, q in zip(twin.parameters(), model.parameters(), strict=True)
                )
                optimizer.zero_grad()
                seen.append(weights_of(twin))
                loss_of(twin, step, rank).backward()  # its own, of which the syncer hears nothing
                assert all(p.grad is not None for p in twin.parameters())
                twin_step = torch.optim.SGD(twin.parameters(), 0.1)
                twin_step.step()
        assert sync.step == 4
        sync.check()
    return [*seen, weights_of(model)]


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_copy_has_taken_the_last_step_and_is_nobodys(overlap: str, copied: Any) -> None:
    strategy = Strategy(what=feedback(topk(0.1)), how=gather())
    found = on_threads(2, lambda driver: train(driver.rank, driver, overlap, copied, strategy))
    plain = on_threads(2, lambda driver: train(driver.rank, driver, "backward", mlp_of, strategy))
    for rank in range(2):
        assert not isinstance(found[rank], Exception), found[rank]
        assert all(torch.equal(a, b) for a, b in zip(found[rank], plain[rank], strict=True))


def mlp_of(model: nn.Module) -> nn.Module:
    """A copy by hand."""
    twin = copy.deepcopy(START)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize(
    "strategy",
    [recipes.diloco(period=2), recipes.onebit_adam(2), recipes.delayed_update()],
    ids=repr,
)
def test_models_of_other_strategies_are_copied_too(strategy: Strategy) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with thinwire.attach(model, optimizer, strategy, **SMALL):
        for step in range(3):
            loss_of(model, step, 0).backward()
            optimizer.step()
            for copied in COPIES.values():
                assert torch.equal(weights_of(copied(model)), weights_of(model))
            optimizer.zero_grad()


def test_a_part_of_a_model_is_copied_with_its_last_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-1)
    with thinwire.attach(model, optimizer, overlap="forward", **SMALL) as sync:
        loss_of(model, 0, 0).backward()
        optimizer.step()
        last = copy.deepcopy(model[-1])
        sync.land()
        assert torch.equal(last.weight, model[-1].weight)


def test_a_pickle_of_old_weights_is_refused() -> None:
    """Unlike `torch.save`, pickle writes a parameter's values before it comes to the hooks."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-1)
    with thinwire.attach(model, optimizer, overlap="forward", **SMALL) as sync:
        assert pickle.dumps(model)
        loss_of(model, 0, 0).backward()
        optimizer.step()
        with pytest.raises(NotLandedError, match=r"Call sync.land\(\) before, or use torch.save"):
            pickle.dumps(model)
        sync.land()
        assert pickle.dumps(model)


# -- gradients with a graph
# -------------------------------------------------------------------------------------------


def with_graph(
    rank: int,
    driver: Driver | None,
    strategy: Strategy | None,
    graph: bool,
    overlap: str = "backward",
) -> Tensor:
    model = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with thinwire.attach(
        model, optimizer, strategy, driver=driver, overlap=overlap, **SMALL
    ) as sync:
        for step in range(4):
            loss_of(model, step, rank).backward(create_graph=graph)
            sync.land()
            assert all(
                param.grad is not None and not param.grad.requires_grad
                for param in model.parameters()
            )
            optimizer.step()
            optimizer.zero_grad()
        sync.check()
    return weights_of(model)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("overlap", ["backward", "forward"])
@pytest.mark.parametrize(
    "strategy",
    [None, Strategy(what=feedback(topk(0.1)), how=gather()), recipes.powersgd(2)],
    ids=repr,
)
def test_gradients_with_a_graph_have_the_same_values(
    strategy: Strategy | None, overlap: str
) -> None:
    """What is sent is a value: the mean over ranks has no graph, which reaches this rank's loss
    alone."""
    graph = on_threads(
        3, lambda driver: with_graph(driver.rank, driver, strategy, graph=True, overlap=overlap)
    )
    plain = on_threads(3, lambda driver: with_graph(driver.rank, driver, strategy, graph=False))
    for rank in range(3):
        assert not isinstance(graph[rank], Exception), graph[rank]
        assert torch.equal(graph[rank], plain[rank])


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_within_an_accumulation_the_graph_is_this_ranks_own() -> None:
    model = mlp()
    with thinwire.attach(
        model, torch.optim.SGD(model.parameters(), 0.1), recipes.accumulation(2), **SMALL
    ) as sync:
        loss_of(model, 0, 0).backward(create_graph=True)
        assert sync.accumulating
        assert all(param.grad.requires_grad for param in model.parameters())
        loss_of(model, 1, 0).backward(create_graph=True)
        assert not any(param.grad.requires_grad for param in model.parameters())


def test_a_gradient_penalty_by_autograd_grad_is_the_whole_losss_gradient() -> None:
    """What the docs advise in place of a second pass through `.grad`."""

    def loss(model: nn.Module, rank: int) -> Tensor:
        first = loss_of(model, 0, rank)
        grads = torch.autograd.grad(first, list(model.parameters()), create_graph=True)
        return first + sum(grad.square().sum() for grad in grads)

    def work(driver: Driver) -> list[Tensor]:
        model = copy.deepcopy(START)
        with thinwire.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), driver=driver, **SMALL
        ):
            loss(model, driver.rank).backward()
            return [param.grad.clone() for param in model.parameters()]

    model = copy.deepcopy(START)
    alone = torch.autograd.grad((loss(model, 0) + loss(model, 1)) / 2, list(model.parameters()))
    for found in on_threads(2, work).values():
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, alone, strict=True))


# -- another type
# --------------------------------------------------------------------------------------------------

TURNED = {
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "one layer": lambda model: model[0].to(torch.float16),
}


@pytest.mark.parametrize("turned", TURNED.values(), ids=TURNED)
@pytest.mark.parametrize(
    "strategy", [Strategy(), recipes.diloco(period=2)], ids=["gradients", "deltas"]
)
def test_a_model_of_another_type_than_at_attach_is_refused(strategy: Strategy, turned: Any) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sync = thinwire.attach(model, optimizer, strategy, **SMALL)
    turned(model)
    loss = sum(param.square().sum() for param in model[0].parameters())
    with pytest.raises(
        AttachError,
        match=(
            r"was torch.float32 on cpu at attach and is torch.\w+ on \w+ now: convert the model "
            r"before"
        ),
    ):
        (loss.backward(), optimizer.step())
    sync.__exit__(AttachError, None, None)


def test_a_model_that_is_turned_before_attach_trains() -> None:
    model = mlp().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = weights_of(model)
    with thinwire.attach(model, optimizer, **SMALL):
        loss_of(model, 0, 0).backward()
        optimizer.step()
    assert not torch.equal(weights_of(model), before)


# -- compiled
# --------------------------------------------------------------------------------------------------

LOSSY = Strategy(what=feedback(topk(0.1)), how=gather())
STATES = {
    "feedback": LOSSY,
    "deltas": recipes.diloco(period=2),
    "parameters": recipes.local_sgd(2),
    "one bit": recipes.onebit_adam(2),
}


def buffered() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    )


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """`torch.compile` wraps a module, and that is all these tests want of it."""
    with torch.compiler.set_stance("force_eager"):
        yield


def wrapped(model: nn.Sequential, how: str) -> nn.Module:
    if how == "whole":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    if how == "a part":
        model[2] = torch.compile(model[2], backend="eager")  # type: ignore[assignment]
    return model


def ended(strategy: Strategy, first: str, then: str) -> tuple[Tensor, list[str]]:
    """Four steps, the last two of them on a model that is wrapped in another way and has taken up
    the state; and the state's keys."""
    old: list[Tensor] = []
    keys: list[str] = []
    state: dict[str, Tensor] = {}
    for begin, how in ((0, first), (2, then)):
        model = buffered()
        net = wrapped(model, how)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with thinwire.attach(net, optimizer, strategy, **SMALL) as sync:
            if old:
                with torch.no_grad():
                    for mine, other in zip((*net.parameters(), *net.buffers()), old, strict=True):
                        mine.copy_(other)
                sync.load_state_dict(state)
            for step in range(begin, begin + 2):
                x = torch.randn(7, 6, generator=torch.Generator().manual_seed(step))
                net(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            old, state = [*net.parameters(), *net.buffers()], sync.state_dict()
            keys = keys or sorted(state)
    return weights_of(net), keys


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("strategy", STATES.values(), ids=STATES)
@pytest.mark.parametrize(
    ("first", "then"),
    [("whole", "plain"), ("plain", "whole"), ("a part", "plain"), ("whole", "a part")],
)
def test_a_compiled_models_state_is_the_plain_ones(
    strategy: Strategy, first: str, then: str
) -> None:
    plain, keys = ended(strategy, "plain", "plain")
    weights, own = ended(strategy, first, then)
    assert torch.equal(weights, plain)
    assert own == keys
    assert not any("_orig_mod" in key for key in own)


@pytest.mark.usefixtures("uncompiled")
def test_ranks_may_compile_or_not() -> None:
    """Names are told without what `torch.compile` puts before them, so ranks with and without it
    are of one model."""

    def work(driver: Driver) -> Tensor:
        net = wrapped(models[driver.rank], "whole" if driver.rank else "plain")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with thinwire.attach(net, optimizer, driver=driver, **SMALL) as sync:
            net(torch.ones(3, 6) * driver.rank).square().sum().backward()
            optimizer.step()
            sync.check()
        return weights_of(net)

    models = [buffered(), buffered()]
    found = on_threads(2, work)
    assert torch.equal(found[0], found[1])


@pytest.mark.usefixtures("uncompiled")
def test_a_state_that_an_earlier_version_saved_of_a_compiled_model_is_read() -> None:
    """Its keys and its model's hash hold `_orig_mod.`."""
    net = wrapped(buffered(), "whole")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with thinwire.attach(net, optimizer, LOSSY, **SMALL) as sync:
        net(torch.ones(3, 6)).square().sum().backward()
        optimizer.step()
        state = sync.state_dict()
        old = {_prefixed(key): value for key, value in state.items()}
        assert old.keys() != state.keys()
        facts = unpack_json(state[META])
        named = sorted(
            (f"_orig_mod.{name}", param.shape) for name, param in buffered().named_parameters()
        )
        old[META] = pack_json({**facts, "model": hash_json(named)})
        sync.load_state_dict(old)
        again = sync.state_dict()
        assert all(torch.equal(again[key], state[key]) for key in state)
    with thinwire.attach(
        model := buffered(), torch.optim.SGD(model.parameters(), 0.1), LOSSY, **SMALL
    ) as sync:
        sync.load_state_dict(old)


def _prefixed(key: str) -> str:
    """The parameter is what stands last."""
    if key == META:
        return key
    *head, part = key.split("|")
    return "|".join([*head, f"_orig_mod.{part}"])


# -- over gloo
# --------------------------------------------------------------------------------------------------


def _on_gloo(rank: int) -> list[list[Tensor]]:
    """A driver with threads and locks, which neither copies nor pickles."""
    return [
        train(rank, None, overlap, copied, LOSSY)
        for overlap in ("backward", "forward")
        for copied in COPIES.values()
    ]


def test_copies_over_gloo() -> None:
    for own in run_ranks(3, _on_gloo):
        for seen in own:
            assert all(torch.equal(a, b) for a, b in zip(seen, own[0], strict=True))
