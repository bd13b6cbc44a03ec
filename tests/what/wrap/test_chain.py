import pytest
import torch

from thinwire.core import Codec, Spec, State
from thinwire.errors import PayloadError, StrategyError
from thinwire.testing import contexts
from thinwire.what import (
    by_role,
    cast,
    chain,
    feedback,
    identity,
    lowrank,
    randomk,
    threshold,
    topk,
    uniform,
)

SEAT, SPEC = contexts()[1], Spec((), 0, 1000, torch.float32)


def test_it_is_both_one_after_the_other() -> None:
    x = torch.randn(1000)
    whole, core = topk(10) >> cast(), topk(10)
    state = whole.init(SPEC, SEAT)
    sent = whole.decode(whole.encode(x, SPEC, state, SEAT), SPEC, state, SEAT, 1)
    kept = core.decode(core.encode(x, SPEC, State(), SEAT), SPEC, State(), SEAT, 1)
    assert torch.equal(sent, kept.bfloat16().float())


def test_brackets_do_not_matter() -> None:
    assert (topk(100) >> randomk(10)) >> cast() == topk(100) >> (randomk(10) >> cast())


def test_its_repr_makes_it() -> None:
    codec = feedback(topk(64, per=4096) >> uniform(2, grid="rise"), decay=0.95)
    assert eval(repr(codec), {"feedback": feedback, "topk": topk, "uniform": uniform}) == codec


@pytest.mark.parametrize(
    ("codec", "nbytes", "most"),
    [
        (topk(8) >> cast(), 9 + 16, 25),
        (topk(8) >> uniform(4, block=4), 9 + 4 + 8, 21),
        (randomk(10) >> cast(), 20, 20),
        (threshold(1.0) >> cast(), None, 8 + 125 + 2000),
        (topk(8) >> threshold(1.0), None, 9 + 8 + 1 + 32),
    ],
    ids=repr,
)
def test_bytes(codec: chain, nbytes: int | None, most: int) -> None:
    assert codec.nbytes(SPEC) == nbytes
    assert codec.max_nbytes(SPEC) == most


@pytest.mark.parametrize(
    ("codec", "summable"),
    [
        (randomk(10) >> cast(), True),
        (randomk(10) >> uniform(4), False),
        (topk(10) >> cast(), False),
        (randomk(99) >> randomk(3), True),
    ],
    ids=repr,
)
def test_it_may_be_added_where_all_pick_the_same_core_and_its_values_may(
    codec: chain, summable: bool
) -> None:
    assert codec.traits.summable is summable
    assert (codec.sum_dtype(SPEC) is not None) is summable


@pytest.mark.parametrize("second", [feedback(cast()), lowrank(2), by_role(matrix=cast())], ids=repr)
def test_what_has_state_or_talks_in_rounds_cannot_follow(second: Codec) -> None:
    with pytest.raises(StrategyError, match="the right side must be stateless and send one packet"):
        topk(10) >> second  # type: ignore[operator]


def test_nothing_follows_bytes() -> None:
    with pytest.raises(StrategyError, match="the left side must hand on a core"):
        chain(uniform(4), cast())  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="hands on bytes, not a core"):
        topk(10) >> uniform(4) >> cast()


def test_a_payload_that_ends_within_its_count_is_refused() -> None:
    codec = threshold(1.0) >> identity()
    with pytest.raises(PayloadError, match="too few for a count"):
        codec.decode(torch.zeros(7, dtype=torch.uint8), SPEC, codec.init(SPEC, SEAT), SEAT, 1)
