"""What would let ranks drift apart in silence is found: at attach, at a step, by `check()`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thinwire
from tests.engine.models import WIDTH, loss_of, train, weights_of
from tests.engine.models import mlp as drawn
from tests.threads import on_threads
from thinwire import Strategy
from thinwire.core import Driver
from thinwire.errors import AttachError, DisagreementError, NotLandedError, ThinwireError
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.when import every

MODELS = {
    seed: drawn(seed) for seed in range(10)
}  # drawn once: threads have one generator between them
LOCAL = Strategy(every(2), on=deltas(outer=nesterov(0.7, 0.9)))
AVERAGED = Strategy(every(2), on=parameters())


def mlp(seed: int = 0) -> nn.Sequential:
    return copy.deepcopy(MODELS[seed])


def sgd_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1)


def ranks(world: int, work: Callable[[Driver], Any]) -> list[Any]:
    """Results by rank, errors of Thinwire's among them; others are raised."""
    results = on_threads(world, work)
    for result in results.values():
        if isinstance(result, BaseException) and not isinstance(result, ThinwireError):
            raise result
    return [results[rank] for rank in range(world)]


# -- weights loaded after attach
# --------------------------------------------------------------------------------------


def loaded(model: nn.Module, seed: int, how: str) -> None:
    other = mlp(seed=seed)
    if how == "whole":
        model.load_state_dict(other.state_dict())
    elif how == "by layer":
        for mine, theirs in zip(model, other, strict=True):  # type: ignore[call-overload]
            mine.load_state_dict(theirs.state_dict())
    else:
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.copy_(theirs.data)


@pytest.mark.parametrize("how", ["whole", "by layer", "in place"])
@pytest.mark.parametrize(
    "strategy",
    [LOCAL, AVERAGED, Strategy(every(2), on=parameters(outer=sgd(0.5, 0.5))), Strategy()],
)
def test_weights_loaded_after_attach_are_where_rounds_begin(strategy: Strategy, how: str) -> None:
    def after(driver: Driver) -> Tensor:
        model = mlp(seed=driver.rank)
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            loaded(model, 7, how)
            train(model, optimizer, driver.rank, range(4))
            sync.check()
        return weights_of(model)

    def before(driver: Driver) -> Tensor:
        model = mlp(seed=7)
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, strategy, driver=driver):
            train(model, optimizer, driver.rank, range(4))
        return weights_of(model)

    assert all(map(torch.equal, ranks(2, after), ranks(2, before)))


@pytest.mark.parametrize(
    "strategy", [LOCAL, AVERAGED, Strategy()], ids=lambda each: type(each.on).__name__
)
def test_one_rank_that_loads_alone_is_found_by_all(strategy: Strategy) -> None:
    def work(driver: Driver) -> Any:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, strategy, driver=driver, check_every=None):
            if driver.rank == 1:
                loaded(model, 7, "whole")
            train(model, optimizer, driver.rank, range(2))

    for error in ranks(3, work):
        assert isinstance(error, DisagreementError)
        assert "ranks [1] do not hold rank 0's" in str(error)
        assert "loaded or changed after attach" in str(error)


def test_weights_loaded_in_mid_run_are_refused_and_a_checkpoint_is_not() -> None:
    def work(driver: Driver) -> tuple[str, Tensor, Tensor]:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, LOCAL, driver=driver) as sync:
            train(model, optimizer, driver.rank, range(3))
            state = {"model": copy.deepcopy(model.state_dict()), "sync": sync.state_dict()}
            train(model, optimizer, driver.rank, range(3, 6))
            never = weights_of(model)
            model.load_state_dict(state["model"])
            sync.load_state_dict(state["sync"])
            train(model, optimizer, driver.rank, range(3, 6))
            again = weights_of(model)
            model.load_state_dict(mlp(seed=5).state_dict())
            with pytest.raises(AttachError) as error:
                train(model, optimizer, driver.rank, range(6, 7))
            model.load_state_dict(state["model"])
            sync.load_state_dict(state["sync"])
        return str(error.value), never, again

    for message, never, again in ranks(1, work):
        assert "was loaded, or changed by hand, at step 6" in message
        assert torch.equal(never, again)


def test_other_weights_for_a_while_are_no_load() -> None:
    def work(driver: Driver) -> Tensor:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, LOCAL, driver=driver) as sync:
            for step in range(3):
                train(model, optimizer, driver.rank, range(step, step + 1))
                own = copy.deepcopy(model.state_dict())
                model.load_state_dict(mlp(seed=9).state_dict())
                model.load_state_dict(own)
                with sync.common_weights():
                    model.load_state_dict(mlp(seed=9).state_dict())
        return weights_of(model)

    def plain(driver: Driver) -> Tensor:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, LOCAL, driver=driver):
            train(model, optimizer, driver.rank, range(3))
        return weights_of(model)

    assert all(map(torch.equal, ranks(2, work), ranks(2, plain)))


def test_an_attached_model_can_still_be_copied_and_saved() -> None:
    model = mlp()
    with thinwire.attach(model, sgd_of(model), LOCAL):
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)  # our own bytes, of three lines above
    for other in (twin, again):
        other.load_state_dict(mlp(seed=3).state_dict())
        assert torch.equal(weights_of(other), weights_of(mlp(seed=3)))


# -- what the syncer does not hold
# ------------------------------------------------------------------------------------


def appended(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    model.append(nn.Linear(5, 5))
    optimizer.add_param_group({"params": list(model[-1].parameters())})


def replaced(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    old, new = model[0].weight, nn.Parameter(torch.zeros(WIDTH, WIDTH))
    model[0].weight = new
    params = optimizer.param_groups[0]["params"]
    params[next(i for i, param in enumerate(params) if param is old)] = new


def given(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


@pytest.mark.parametrize("strategy", [LOCAL, Strategy()], ids=lambda each: type(each.on).__name__)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (appended, "'5.weight' and 1 more joined the model after attach"),
        (replaced, "'0.weight' was replaced after attach"),
        (given, "has been given 1 parameters that are not the model's"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_parameters_that_come_later_are_found_by_check_and_at_the_step(
    strategy: Strategy, change: Any, message: str
) -> None:
    def work(driver: Driver) -> tuple[str, str]:
        model = mlp()
        optimizer = sgd_of(model)
        sync = thinwire.attach(model, optimizer, strategy, driver=driver)
        train(model, optimizer, driver.rank, range(2))
        change(model, optimizer)
        with pytest.raises(AttachError) as by_check:
            sync.check()
        with pytest.raises(AttachError) as at_step:
            train(model, optimizer, driver.rank, range(2, 3))
        sync.close()
        return str(by_check.value), str(at_step.value)

    for by_check, at_step in ranks(2, work):
        assert f"rank 0: {message}" in by_check.replace("the optimiser ", "")
        assert f"rank 1: {message}" in by_check.replace("the optimiser ", "")
        assert message in at_step


def test_a_layer_with_an_optimiser_of_its_own_is_found_at_its_step() -> None:
    model = mlp()
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer, LOCAL):
        train(model, optimizer, 0, range(2))
        model.append(nn.Linear(5, 5))
        own = sgd_of(model[-1])
        loss_of(model, 1, 0).backward()
        with pytest.raises(AttachError, match=r"'5\.weight' and 1 more joined the model"):
            own.step()


def test_a_new_parameter_that_nobody_steps_is_found_within_sixteen_steps() -> None:
    model = mlp()
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer):
        train(model, optimizer, 0, range(3))
        model.append(nn.Linear(5, 5))
        with pytest.raises(AttachError, match="joined the model"):
            train(model, optimizer, 0, range(3, 20))


@pytest.mark.parametrize("strategy", [LOCAL, Strategy()], ids=lambda each: type(each.on).__name__)
def test_gradients_set_by_hand_are_refused(strategy: Strategy) -> None:
    model = mlp()
    optimizer = sgd_of(model)
    with thinwire.attach(model, optimizer, strategy) as sync:
        for step in range(3):
            gradients = torch.autograd.grad(loss_of(model, step, 0), list(model.parameters()))
            for param, gradient in zip(model.parameters(), gradients, strict=True):
                param.grad = gradient
            before = weights_of(model)
            with pytest.raises(
                NotLandedError, match=r"no backward pass has brought the gradient of '0\.weight'"
            ):
                optimizer.step()
            assert torch.equal(weights_of(model), before)
            optimizer.zero_grad()
            train(model, optimizer, 0, range(step, step + 1))
        assert sync.step == 3


def test_gradients_set_by_hand_can_be_sent() -> None:
    def work(driver: Driver) -> Tensor:
        model = mlp()
        optimizer = sgd_of(model)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            for step in range(2):
                gradients = torch.autograd.grad(
                    loss_of(model, step, driver.rank), list(model.parameters())
                )
                for param, gradient in zip(model.parameters(), gradients, strict=True):
                    param.grad = gradient
                sync.skip_step()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
        return weights_of(model)

    one, other = ranks(2, work)
    assert torch.equal(one, other)


def test_a_closure_brings_its_gradients_itself() -> None:
    model = mlp()
    optimizer = sgd_of(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0, 0)
        loss.backward()
        return loss

    with thinwire.attach(model, optimizer) as sync:
        for _ in range(3):
            optimizer.step(closure)
        assert sync.step == 3


# -- the optimiser that steps is not the attached one
# -----------------------------------------------------------------


def test_an_optimizer_made_anew_is_found_on_local_steps() -> None:
    model = mlp()
    attached = torch.optim.SGD(model.parameters(), 0.05)
    with thinwire.attach(model, attached, Strategy(every(2), on=deltas())):
        other = torch.optim.SGD(model.parameters(), 0.05)
        loss_of(model, 0, 0).backward()
        other.step()
        loss_of(model, 1, 0).backward()
        with pytest.raises(NotLandedError, match="that is not attached steps the model"):
            other.step()


def test_another_optimizer_may_not_step_before_the_mean_has_landed() -> None:
    model = mlp()
    attached = torch.optim.SGD(model[0].parameters(), 0.05)
    other = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 0.05)
    with thinwire.attach(model, attached, Strategy(every(2))):
        loss_of(model, 0, 0).backward()
        with pytest.raises(NotLandedError, match="no mean has landed"):
            other.step()
        loss_of(model, 1, 0).backward()
        other.step()


def test_a_buffer_that_its_module_replaces_is_still_rank_0s() -> None:
    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()
            return self.layer(x)

    def work(driver: Driver) -> torch.Tensor:
        model = Averages()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with thinwire.attach(model, optimizer, driver=driver) as sync:
            for _ in range(3):
                model(torch.full((1, 2), 1.0 + driver.rank)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
            return model.mean.clone()

    means = on_threads(2, work)
    assert torch.equal(means[0], means[1])
    assert float(means[0]) == pytest.approx(0.271, abs=1e-3)
