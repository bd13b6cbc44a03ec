"""Put a stand-in in `.grad` for a gradient whose mean has not landed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thinwire.errors import NotLandedError


class Late(Tensor):
    """A stand-in in `.grad` for a mean that has not landed.

    It has the gradient's shape, dtype and device, and no storage. Any torch function that reads it
    raises an error with the reason."""

    @staticmethod
    def __new__(cls, like: Tensor) -> Late:
        return torch.Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Every operation on a wrapper subclass comes here, below autograd, so that none slips by.
        raise NotLandedError(
            f"{func} on a gradient whose mean has not landed: it does in the next forward pass, "
            "where its parameter is stepped, too. "
            "To clip or read gradients call sync.land() after backward() (that waits for the "
            "wire), or attach with overlap='backward'; "
            "between two steps let zero_grad() set gradients to None"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Late({tuple(self.shape)})"
