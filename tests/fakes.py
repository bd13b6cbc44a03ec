"""Stand-ins for what the engine provides."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from thinwire.core import Bucket, Part, Schedule, Spec
from thinwire.when import every


@dataclass
class FakeBucket:
    """Two parameters in one flat run of float32; a `thinwire.core.Bucket`."""

    flat: Tensor
    spec: Spec = field(init=False)
    grad: Tensor = field(init=False)
    total_mask: Tensor | None = None
    world: int = 2
    when: Schedule = field(default_factory=every)

    def __post_init__(self) -> None:
        n = self.flat.numel()
        self.spec = Spec(
            (Part("w", (n - 1, 1), 0, "matrix"), Part("b", (1,), n - 1, "vector")),
            0,
            n,
            torch.float32,
        )
        self.grad = torch.zeros(n)

    def weights(self) -> Tensor:
        return self.flat.clone()

    def set_weights(self, flat: Tensor) -> None:
        self.flat = flat.clone()

    def mask(self) -> Tensor | None:
        return self.total_mask

    def grads(self) -> Tensor:
        return self.grad

    def set_grads(self, flat: Tensor) -> None:
        self.grad = flat


def _is_a_bucket(bucket: FakeBucket) -> Bucket:
    return bucket
