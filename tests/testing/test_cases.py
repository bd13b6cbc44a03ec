"""The awkward inputs of all checks, and how a broken law is reported."""

from __future__ import annotations

import pytest
import torch

from thinwire.core import Spec
from thinwire.testing.cases import RANKS, contexts, inputs, require, same, specs
from thinwire.when import every


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_inputs_fit_their_span_and_are_the_same_each_time(spec: Spec) -> None:
    first, again = inputs(spec, rank=1), inputs(spec, rank=1)
    for name, x in first.items():
        assert x.shape == (spec.numel,)
        assert x.dtype == (spec.work if name == "wide dtype" else spec.dtype)
        assert x.isfinite().all()
        assert same(x, again[name])


def test_ranks_have_different_values() -> None:
    spec = specs()["many parts"]
    assert not same(inputs(spec, 1)["normal"], inputs(spec, 2)["normal"])


def test_the_same_is_of_bits_and_types() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same(nan, nan.clone())
    assert not same(zero, -zero)
    assert not same(zero, zero.double())
    assert not same(zero, zero.view(1, 1))


def test_a_broken_law_names_member_law_and_case() -> None:
    require(True, every(2), "a law", "a case")
    with pytest.raises(AssertionError, match=r"^every\(n=2\) breaks the law 'a law' on a case$"):
        require(False, every(2), "a law", "a case")


def test_each_rank_of_a_group_has_its_context() -> None:
    made = contexts(step=3, seed=4)
    assert tuple(made) == RANKS
    assert {(ctx.rank, ctx.group, ctx.step, ctx.seed) for ctx in made.values()} == {
        (rank, RANKS, 3, 4) for rank in RANKS
    }
