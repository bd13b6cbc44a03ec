"""A stand-in has the gradient's shape, and whatever reads it is told what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thinwire.engine.overlap.stand_in import Late
from thinwire.errors import NotLandedError


def test_it_has_the_shape_dtype_and_device_of_the_gradient() -> None:
    like = torch.zeros(3, 4, dtype=torch.float64)
    late = Late(like)
    assert (late.shape, late.dtype, late.device) == (like.shape, like.dtype, like.device)
    assert repr(late) == "Late((3, 4))"


def test_a_parameter_takes_it_and_gives_it_up_without_a_read() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = Late(parameter)
    assert isinstance(parameter.grad, Late)
    parameter.grad = None  # as zero_grad() does
    assert parameter.grad is None


READS = {
    "add": lambda late: late + 1,
    "sum": lambda late: late.sum(),
    "norm": lambda late: late.norm(),
    "clone": lambda late: late.clone(),
    "zero_": lambda late: late.zero_(),
    "copy to": lambda late: late.copy_(torch.ones(2)),
    "copy from": lambda late: torch.ones(2).copy_(late),
    "isfinite": lambda late: late.isfinite(),
    "to": lambda late: late.to(torch.float64),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_reading_or_writing_it_is_an_error_with_the_remedies(read) -> None:
    with pytest.raises(NotLandedError) as refused:
        read(Late(torch.zeros(2)))
    for remedy in ("sync.land() after backward()", "overlap='backward'", "zero_grad()"):
        assert remedy in str(refused.value)


def test_clipping_is_an_error_and_changes_no_other_gradient() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.full((2,), 9.0), Late(parameters[1])
    with pytest.raises(NotLandedError, match="a gradient whose mean has not landed"):
        nn.utils.clip_grad_norm_(parameters, 1.0)
    assert parameters[0].grad.tolist() == [9.0, 9.0]
