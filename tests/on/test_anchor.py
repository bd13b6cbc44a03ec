"""Anchors kept in fewer bytes: right in the mean, alike on all ranks, and refused where they would
stand still."""

from __future__ import annotations

import torch

from thinwire.core import Leaf, Spec, State
from thinwire.on import optim, sgd
from thinwire.on._anchor import misfits, put, twin

SPEC = Spec((), 0, 4096, torch.float32)


def test_narrowed_values_are_right_in_the_mean_and_the_same_for_the_same_draw() -> None:
    value = torch.full((4096,), 1.0 + 1 / 1000)  # between two values of bfloat16
    leaf = Leaf(torch.zeros(4096, dtype=torch.bfloat16), "replicated", SPEC)
    put(leaf, value, torch.arange(8.0))
    first = leaf.value.clone()
    assert leaf.value.dtype == torch.bfloat16
    assert set(first.tolist()) == {1.0, 1.0078125}
    assert abs(float(first.double().mean()) - 1.001) < 5e-4
    put(leaf, value, torch.arange(8.0))
    assert torch.equal(leaf.value, first)
    put(leaf, value, torch.arange(8.0) + 1)
    assert not torch.equal(leaf.value, first)


def test_what_bfloat16_holds_and_what_is_not_narrowed_stay_as_they_are() -> None:
    exact = torch.tensor([1.0, -2.5, 0.0, 3.0e38])
    leaf = Leaf(torch.zeros(4, dtype=torch.bfloat16), "replicated", SPEC)
    put(leaf, exact, exact)
    assert torch.equal(leaf.value.float(), exact.bfloat16().float())
    wide = Leaf(torch.zeros(4), "replicated", SPEC)
    put(wide, exact + 1e-7, exact)
    assert torch.equal(wide.value, exact + 1e-7)


def test_a_twin_changes_without_the_other() -> None:
    state = State(
        {"anchor": Leaf(torch.ones(3), "replicated")},
        {"outer": State({"m": Leaf(torch.ones(3), "replicated")})},
    )
    copy = twin(state)
    copy["anchor"].value = torch.zeros(3)
    copy.child("outer")["m"].value = torch.zeros(3)
    assert state["anchor"].value.tolist() == state.child("outer")["m"].value.tolist() == [1.0] * 3
    assert [path for path, _ in copy.walk()] == [path for path, _ in state.walk()]


def test_stores_that_cannot_be_are_refused_with_what_to_do() -> None:
    assert misfits("deltas", sgd(1.0), "bf16", "cpu") == []
    [reason] = misfits("deltas", optim("AdamW", "lr=1e-3"), "bf16", None)
    assert "would stand still" in reason
    assert "Take nesterov(…) or sgd(…)" in reason
    assert len(misfits("deltas", sgd(1.0), "fp8", "moon")) == 2  # type: ignore[arg-type]
