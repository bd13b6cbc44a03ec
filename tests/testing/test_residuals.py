"""What the checks read off a codec that keeps a residual, and off one that keeps none."""

from __future__ import annotations

import torch

from thinwire.core import RankContext, Spec
from thinwire.testing.residuals import residual, rounded_off, values_kept
from thinwire.what import feedback, topk, uniform

SPEC, CTX = Spec((), 0, 4, torch.float32), RankContext(0, (0,), 0, 0)


def test_a_codec_without_memory_keeps_no_residual_and_rounds_none_off() -> None:
    codec = uniform(8)
    state, x = codec.init(SPEC, CTX), torch.tensor([1.0, -2.0, 3.0, 0.5])
    assert residual(codec, state, SPEC, CTX, faded=False).isnan().all()
    assert torch.equal(values_kept(codec, x, SPEC, state, CTX), x)
    assert rounded_off(codec, x).tolist() == [0.0] * 4


def test_a_bound_of_what_storing_rounds_off_holds_for_what_was_stored() -> None:
    held = torch.tensor([1.0, -254.0, 3.14159, 0.001])
    bound = rounded_off(feedback(topk(1), store="bf16"), held)
    assert ((held.bfloat16().double() - held.double()).abs() <= bound).all()
    assert bound.dtype == torch.float64
