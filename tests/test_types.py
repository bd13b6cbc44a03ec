"""A setting of another type is refused when a member is made, whichever member, by name and with
what was expected."""

from __future__ import annotations

import pickle

import pytest

from thinwire.errors import StrategyError
from thinwire.how import hierarchical, native, two_shot
from thinwire.on import deltas, nesterov
from thinwire.what import feedback, lowrank, topk, uniform
from thinwire.when import delayed, every, staggered, warmup

WRONG = [
    (lambda: every(1.5), r"every\(n=1.5\): expected int"),
    (lambda: every(True), r"every\(n=True\): expected int"),
    (lambda: lowrank(rank="4"), r"lowrank\(rank='4'\): expected int"),
    (lambda: topk("a"), r"topk\(k='a'\): expected int or float"),
    (lambda: feedback(5), r"feedback\(inner=5\): expected Codec"),
    (lambda: feedback(every(1)), r"feedback\(inner=every\(n=1\)\): expected Codec"),
    (lambda: delayed(1, 5), r"delayed\(inner=5\): expected Schedule"),
    (
        lambda: staggered(2, delayed(1, every(4))),
        r"staggered\(inner=delayed\(.*\)\): expected every",
    ),
    (lambda: staggered(2, warmup(1, every(4))), r"expected every"),
    (lambda: deltas(outer=3), r"deltas\(outer=3\): expected Outer"),
    (lambda: nesterov("fast"), r"nesterov\(lr='fast'\): expected float"),
    (lambda: two_shot(back=native()), r"two_shot\(back=native\(\)\): expected Codec or NoneType"),
    (lambda: hierarchical((native(), 3), native(), node=2), r"expected Route or \(Route, Codec\)"),
    (lambda: uniform(4) >> topk(3), "the left side must hand on a core"),
    (lambda: feedback(topk(3)) >> uniform(4), "the left side must hand on a core"),
    (lambda: topk(3) >> feedback(uniform(4)), "the right side must be stateless"),
    (lambda: topk(3) >> 5, "the right side must be stateless"),
]


@pytest.mark.parametrize(("make", "reason"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_type_is_refused(make, reason):
    with pytest.raises(StrategyError, match=reason):
        make()


def test_right_types_pass_and_members_survive_a_pickle():
    member = feedback(topk(64, per=4096) >> uniform(bits=2, grid="rise"), decay=1)
    assert pickle.loads(pickle.dumps(member)) == member
