"""What every target inherits."""

from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from thinwire.core import Bucket, State, Target


class _plain(Target):
    clock: ClassVar[Literal["backward", "step"]] = "step"

    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        return bucket.weights() * weight

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        bucket.set_weights(total)


class _Weights:
    def weights(self) -> Tensor:
        return torch.tensor([1.0, 2.0])


def test_a_target_without_a_base_refuses_to_return_one() -> None:
    target = _plain()
    assert not target.offers_base
    with pytest.raises(NotImplementedError, match="offers no base"):
        target.base(_Weights(), State())  # type: ignore[arg-type]


def test_ranks_must_hold_equal_parameters_unless_a_target_says_otherwise() -> None:
    common = _plain().common(_Weights(), State())  # type: ignore[arg-type]
    assert common is not None
    assert common.tolist() == [1.0, 2.0]
