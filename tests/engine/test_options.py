"""Options of `attach`, models and optimisers that cannot be, refused with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import thinwire
from tests.engine.models import mlp, sgd_of
from thinwire import Strategy
from thinwire.errors import AttachError
from thinwire.how import two_shot
from thinwire.on import deltas, gradients
from thinwire.what import identity
from thinwire.when import delayed, every

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
