"""Payloads that add unopened are added in order, narrow floats in float32."""

import torch

from thinwire.how._sums import added
from thinwire.kernels import reference


def test_runs_of_several_types_are_added_each_as_its_own() -> None:
    payload = torch.cat(
        [
            reference.as_bytes(torch.tensor([1.0, 2.0])),
            reference.as_bytes(torch.tensor([3], dtype=torch.int64)),
        ]
    )
    total = added([payload.clone(), payload], ((8, torch.float32), (8, torch.int64)))
    assert reference.from_bytes(total[:8], torch.float32).tolist() == [2.0, 4.0]
    assert reference.from_bytes(total[8:], torch.int64).tolist() == [6]


def test_narrow_floats_are_rounded_once() -> None:
    values = [torch.tensor([v], dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0, 1.0)]
    total = added([reference.as_bytes(v) for v in values], ((2, torch.bfloat16),))
    assert (
        reference.from_bytes(total, torch.bfloat16).item() == 260.0
    )  # 259, rounded; one by one: 256
