"""A codec around a codec has the inner one's facts, and one residual is enough."""

from __future__ import annotations

import pytest
import torch

from thinwire.core import Part, RankContext, Spec
from thinwire.errors import StrategyError
from thinwire.what import by_role, cast, clip, dgc, feedback, lowrank, topk, uniform
from thinwire.what.wrap._wrap import twice, what_is_left, where, where_finite

SPEC = Spec((Part("w", (64, 64), 0, "matrix"),), 0, 4096, torch.float32)
CTX = RankContext(0, (0, 1), 0, 0)


@pytest.mark.parametrize(
    "inner",
    [cast(), uniform(4), topk(0.1), lowrank(2), topk(9) >> uniform(8)],
    ids=repr,
)
def test_bytes_grain_and_flags_are_the_inner_codecs(inner) -> None:
    outer = feedback(inner)
    assert outer.nbytes(SPEC) == inner.nbytes(SPEC)
    assert outer.max_nbytes(SPEC) == inner.max_nbytes(SPEC)
    for name in ("grain", "drops", "randomised", "summable"):
        assert getattr(outer.traits, name) == getattr(inner.traits, name), name
    assert (outer.single_packet_coder is None) == (inner.single_packet_coder is None)
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(outer.error_bound(x, SPEC, CTX), inner.error_bound(x, SPEC, CTX))


@pytest.mark.parametrize(
    "make",
    [
        lambda: feedback(feedback(topk(1))),
        lambda: feedback(dgc(topk(1))),
        lambda: dgc(feedback(topk(1))),
        lambda: feedback(clip(feedback(topk(1)), 1.0)),
        lambda: feedback(by_role(matrix=feedback(topk(1)))),
    ],
    ids=["twice", "dgc inside", "dgc outside", "around clip", "around by_role"],
)
def test_a_residual_within_a_residual_is_refused(make) -> None:
    with pytest.raises(StrategyError, match="one residual is enough; feedback within feedback"):
        make()


def test_one_residual_is_no_problem() -> None:
    assert twice(feedback(clip(topk(1), 1.0))) == []


def test_what_was_sent_is_taken_off() -> None:
    y, sent = torch.tensor([3.0, -1.0]), torch.tensor([2.5, 0.0])
    left = what_is_left(y, sent)
    assert left.tolist() == [0.5, -1.0]
    assert y.tolist() == [3.0, -1.0]


def test_the_new_value_is_taken_only_where_all_is_finite() -> None:
    new, old = torch.ones(2), torch.zeros(2)
    assert where(torch.tensor(True), new, old) is new
    assert where(torch.tensor(False), new, old) is old
    assert where_finite(new, old, torch.tensor([1.0, 2.0])) is new
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert where_finite(new, old, torch.tensor([1.0, bad])) is old
