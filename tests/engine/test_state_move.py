"""State moves by path, parameter and element; what has no place, or another form, is listed."""

from __future__ import annotations

import pytest
import torch

from tests.engine.models import mlp, train
from tests.threads import on_threads
from thinwire import Strategy, attach
from thinwire.core import Driver
from thinwire.how import gather, two_shot
from thinwire.what import clip, feedback, topk, uniform

TOPK = Strategy(what=feedback(topk(0.1)), how=gather())
BOTH_WAYS = Strategy(what=feedback(uniform(4)), how=two_shot(back=feedback(uniform(4))))


def switched(old: Strategy, new: Strategy, **settings):
    """By rank: the leaves before and after a switch, and what is lost."""

    def work(driver: Driver):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with attach(model, optimizer, old, driver=driver, bucket_bytes=2000, **settings) as sync:
            train(model, optimizer, driver.rank, range(3))
            before = leaves_of(sync)
            lost = sync.switch(new)
            return before, leaves_of(sync), lost

    results = on_threads(3, work, timeout_s=20)
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[rank] for rank in range(3)]


def leaves_of(sync):
    return [
        (path, leaf.kind, leaf.spec, leaf.flat)
        for bucket in sync.buckets
        for part in bucket.slices
        for path, leaf in part.state.walk()
        if leaf.spec is not None
    ]


def sums_of(leaves, kind: str) -> float:
    return sum(float(flat.double().sum()) for _, of_kind, _, flat in leaves if of_kind == kind)


def test_a_residual_is_taken_over_under_another_path() -> None:
    for before, after, lost in switched(TOPK, Strategy(what=clip(TOPK.what, 1.0), how=gather())):
        assert lost == ()
        assert {path for path, *_ in before} != {path for path, *_ in after}
        for (*_, old), (*_, new) in zip(before, after, strict=True):
            assert torch.equal(old, new)
            assert old.any()


def test_residuals_of_both_sides_of_a_route_are_kept() -> None:
    for before, after, lost in switched(BOTH_WAYS, BOTH_WAYS):
        assert {kind for _, kind, *_ in before} == {"summed", "sharded"}
        assert lost == ()
        for (*_, old), (*_, new) in zip(before, after, strict=True):
            assert torch.equal(old, new)


def test_a_second_sides_residual_that_has_no_place_is_listed() -> None:
    one_way = Strategy(what=BOTH_WAYS.what, how=gather())
    with pytest.warns(UserWarning, match="residual' of"):
        results = switched(BOTH_WAYS, one_way)
    for before, after, lost in results:
        assert len(lost) == 1
        assert sums_of(before, "summed") == pytest.approx(sums_of(after, "summed"), abs=1e-6)


def test_another_form_of_a_residual_is_listed_as_rounded() -> None:
    small = Strategy(what=feedback(topk(0.1), store="bf16"), how=gather())
    with pytest.warns(UserWarning, match="rounded"):
        results = switched(TOPK, small)
    for before, after, lost in results:
        assert len(lost) == 1
        for (*_, old), (*_, new) in zip(before, after, strict=True):
            torch.testing.assert_close(old, new, rtol=1e-2, atol=0)
