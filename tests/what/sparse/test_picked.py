"""A codec that picks entries by the data: it gives the pick, and the rest follows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from thinwire.core import Part, RankContext, Spec, State
from thinwire.errors import PayloadError
from thinwire.what.sparse import _indices
from thinwire.what.sparse._picked import Picked

SPEC = Spec((Part("w", (9,), 0, "vector"),), 0, 9, torch.float32)
NONE = Spec((), 0, 0, torch.float32)
CTX = RankContext(0, (0, 1), 0, 0)


@dataclass(frozen=True)
class _Positive(Picked):
    """Keeps what is above 0."""

    def _pick(self, x: Tensor, spec: Spec, state: State, ctx: RankContext) -> tuple[Tensor, Tensor]:
        indices = (x > 0).nonzero().view(-1)
        return indices, x[indices]


X = torch.tensor([-1.0, 2, 0, -3, 4, 5, -6, float("inf"), -7])


def test_what_is_picked_comes_back_at_its_index_and_all_else_is_zero() -> None:
    codec, state = _Positive(), State()
    core, side = codec.split(X, SPEC, state, CTX)
    assert core.tolist() == [2, 4, 5, float("inf")]
    assert side.numel() <= codec.side_nbytes(SPEC, core.numel())
    out = codec.join(core, side, SPEC, state, CTX, 1)
    assert torch.equal(out, X.clamp(min=0))
    assert codec.core_numel(SPEC) is None, "the data decide"
    assert codec.traits.drops


@pytest.mark.parametrize(
    ("x", "spec", "count"), [(-X.abs(), SPEC, 0), (X.abs() + 1, SPEC, 9), (X[:0], NONE, 0)]
)
def test_none_all_and_an_empty_span(x: Tensor, spec: Spec, count: int) -> None:
    codec, state = _Positive(), State()
    core, side = codec.split(x, spec, state, CTX)
    assert core.numel() == count
    assert torch.equal(codec.join(core, side, spec, state, CTX, 1), x.clamp(min=0))


def test_low_precision_is_picked_in_the_work_dtype() -> None:
    spec = Spec(SPEC.parts, 0, 9, torch.bfloat16)
    core, _ = _Positive().split(X.bfloat16(), spec, State(), CTX)
    assert core.dtype == torch.float32


def test_indices_of_another_count_are_refused() -> None:
    codec, state = _Positive(), State()
    core, side = codec.split(X, SPEC, state, CTX)
    with pytest.raises(PayloadError):
        codec.join(core, side[:-1], SPEC, state, CTX, 1)
    beyond = _indices.write(torch.tensor([[7, 8, 9, 10]]), 11)
    with pytest.raises(PayloadError):
        codec.join(core, beyond, SPEC, state, CTX, 1)
