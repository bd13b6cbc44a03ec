"""Options of `attach`, models and optimisers that cannot be, refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import mlp, sgd_of
from thinwire import Strategy
from thinwire.engine.options import (
    Options,
    buffer_places,
    facts,
    params_of,
    persistent_buffers,
    problems,
)
from thinwire.errors import AttachError
from thinwire.how import two_shot
from thinwire.on import deltas, gradients, momentum
from thinwire.what import identity
from thinwire.when import delayed, every, warmup

DENSE = Strategy(every(1), identity(), two_shot(), gradients())
SMALL = {"bucket_bytes": 2000, "slice_bytes": 512}


def _refused(strategy: Strategy = DENSE, **options) -> str:
    model = mlp()
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters())
    with pytest.raises(AttachError) as caught:
        thinwire.attach(model, optimizer, strategy, **({"overlap": "forward"} | options))
    return str(caught.value)


def test_a_complex_or_wrapped_model_is_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(AttachError, match="complex64"):
        thinwire.attach(model, torch.optim.SGD(model.parameters(), 0.1))


def test_an_optimiser_of_other_parameters_is_refused() -> None:
    model, other = mlp(), mlp()
    extra = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(
        AttachError, match=r"none of the model's 6 parameters that train: it is of another model"
    ):
        thinwire.attach(model, sgd_of(other))
    with pytest.raises(
        AttachError,
        match=r"holds 1 parameters that are not the model's \(the first of shape \(3, 4\)\)",
    ):
        thinwire.attach(model, torch.optim.SGD([*model.parameters(), extra], 0.1))
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    thinwire.attach(model, torch.optim.SGD([*model.parameters(), frozen], 0.1)).close()


def test_what_cannot_land_late_is_refused():
    assert "'backward' or 'forward' or 'priority'" in _refused(overlap="sideways")
    assert "delayed" in _refused(Strategy(every(2), identity(), two_shot(), deltas()))
    assert "hidden already" in _refused(
        Strategy(delayed(1, every(1)), identity(), two_shot(), gradients())
    )
    assert "bf16" in _refused(scaler=torch.amp.GradScaler("cpu"))
    assert "LBFGS" in _refused(optimizer=torch.optim.LBFGS)


PLAIN = Options(1000, None, 1, "backward", "broadcast", None, 0)


def reasons(
    model: nn.Module | None = None, strategy: Strategy = DENSE, **changed: Any
) -> list[str]:
    model = mlp() if model is None else model
    optimizer = changed.pop("optimizer", sgd_of)(model)
    return problems(model, optimizer, strategy, replace(PLAIN, **changed))


def test_what_can_be_has_no_reason() -> None:
    assert reasons() == []
    assert reasons(lanes="auto", slice_bytes="auto", check_every="auto") == []


def test_every_option_out_of_range_is_named_at_once() -> None:
    assert reasons(
        bucket_bytes=0,
        slice_bytes=-1,
        lanes=1.5,
        check_every="often",
        buffers="none",
        nonfinite="ignore",
        source="hook",
    ) == [
        "bucket_bytes=0: at least 1",
        "slice_bytes=-1: at least 1, or None, or 'auto'",
        "lanes=1.5: at least 1, or 'auto'",
        "check_every='often': at least 1, or None, or 'auto'",
        "buffers='none': choose 'broadcast' or 'local'",
        "nonfinite='ignore': choose 'raise' or 'skip' or 'pass'",
        "source='hook': choose 'hooks' or 'manual'",
    ]


def test_what_is_no_strategy_is_the_only_reason() -> None:
    (reason,) = reasons(strategy="powersgd", bucket_bytes=0)  # type: ignore[arg-type]
    assert reason == (
        "strategy='powersgd' is no Strategy; take one from thinwire.recipes, such as "
        "recipes.powersgd()"
    )


def test_models_that_cannot_be_attached() -> None:
    frozen = mlp().requires_grad_(False)
    (reason,) = reasons(frozen, optimizer=lambda model: torch.optim.SGD(model.parameters()))
    assert reason.startswith("the model has nothing to train: no parameter requires a gradient")
    parted = mlp()
    parted[0].register_buffer("mean", torch.zeros(1, device="meta"))
    (reason,) = reasons(parted)
    assert reason == "parameters and buffers are on cpu, meta: move them to one device"


def test_an_update_is_not_averaged_twice() -> None:
    strategy = Strategy(warmup(2, every(1)), on=momentum())
    for optimizer in (torch.optim.Adam, lambda params: torch.optim.SGD(params, momentum=0.9)):
        (reason,) = reasons(
            strategy=strategy, optimizer=lambda model, make=optimizer: make(model.parameters())
        )
        assert "puts a whole update into .grad" in reason
        assert "use torch.optim.SGD(params, lr, weight_decay=…) without momentum" in reason
    assert reasons(strategy=strategy) == []


def test_what_takes_no_hooks_is_no_optimiser() -> None:
    (reason,) = reasons(optimizer=lambda _: object())
    assert reason.startswith("the optimiser is a object, which takes no hooks")


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.register_buffer("mask", torch.ones(1))


def test_buffers_are_those_that_a_checkpoint_holds() -> None:
    model = Buffered()
    names = ["mask", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert [name for name, _ in persistent_buffers(model)] == names
    assert [(name, attribute) for name, _, attribute in buffer_places(model)] == [
        (name, name.rpartition(".")[2]) for name in names
    ]
    assert [module for _, module, _ in buffer_places(model)] == [model, *[model.norm] * 3]


def test_facts_tell_apart_what_ranks_must_hold_alike() -> None:
    first = facts(mlp(), DENSE, PLAIN)
    assert first == facts(mlp(seed=1), DENSE, PLAIN), "weights are broadcast"
    assert first["model parameters"][0] == ["0.weight", [24, 24], "torch.float32", True, ""]
    wider = facts(mlp(depth=2), DENSE, replace(PLAIN, seed=1))
    differing = [name for name in first if first[name] != wider[name]]
    assert differing == ["seed", "model parameters"]
    compiled = nn.ModuleDict({"_orig_mod": mlp()})  # the prefix that torch.compile gives to names
    assert facts(compiled, DENSE, PLAIN) == first


def test_parameters_of_all_groups_are_listed() -> None:
    model = mlp()
    groups = [{"params": list(layer.parameters())} for layer in (model[2], model[0])]
    held = params_of(torch.optim.SGD(groups, 0.1))
    assert list(map(id, held)) == [id(param) for group in groups for param in group["params"]]
