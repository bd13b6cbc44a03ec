"""What all objectives share: batches, and the loss of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.test_objectives import fitted, generator, windows
from thinwire.models.objective import IGNORED, Batch, loss
from thinwire.models.objectives import masked


def test_a_batch_keeps_its_tensors_on_another_device() -> None:
    batch = Batch({"input_ids": torch.tensor([[1, 2]])}, torch.tensor([[2, IGNORED]]))
    moved = batch.to("cpu")
    assert moved.inputs["input_ids"].equal(batch.inputs["input_ids"])
    assert moved.targets.equal(batch.targets)


def test_the_loss_is_the_mean_over_targets_in_float32() -> None:
    objective = fitted(masked(16))
    batch = objective.batch(windows(objective, 3), generator(0))
    logits = torch.randn(3, 16, 260, generator=generator(1)).bfloat16()

    class Answers(torch.nn.Module):
        def forward(self, input_ids: Tensor, use_cache: bool = True) -> object:
            assert not use_cache
            return type("Output", (), {"logits": logits})

    value = loss(Answers(), batch)
    picked = batch.targets != IGNORED
    expected = (
        -logits.float().log_softmax(-1)[picked].gather(1, batch.targets[picked][:, None]).mean()
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
