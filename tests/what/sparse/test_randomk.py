from dataclasses import replace

import pytest
import torch

from tests.how.flights import bucket, launch, values
from thinwire.core import Codec, Spec, State
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather
from thinwire.testing import contexts
from thinwire.what import budget, hadamard, randomk, uniform

SPEC = Spec((), 0, 103, torch.float32)


def drawn(codec: randomk, step: int = 0, rank: int = 1) -> list[int]:
    ctx = contexts(step)[rank]
    payload = codec.encode(torch.ones(103), SPEC, State(), ctx)
    return codec.decode(payload, SPEC, State(), ctx, rank).nonzero().view(-1).tolist()


def test_all_ranks_draw_the_same_places_and_no_place_twice() -> None:
    for step in range(20):
        indices = drawn(randomk(10), step)
        assert len(indices) == 10
        assert all(drawn(randomk(10), step, rank) == indices for rank in (2, 5))


def test_every_entry_is_drawn_equally_often() -> None:
    counts = torch.zeros(103)
    for step in range(1500):
        counts[drawn(randomk(10), step)] += 1
    expected = 1500 * 10 / 103
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_spans_of_one_bucket_draw_different_places() -> None:
    ctx = contexts()[1]
    lots = [randomk(10)._lot(SPEC, replace(ctx, key=key))[0].tolist() for key in ("a", "b")]
    assert lots[0] != lots[1]


@pytest.mark.parametrize("k", [0, -3, 1.2, float("nan")])
def test_a_k_that_is_no_count_and_no_share_is_refused(k: float) -> None:
    with pytest.raises(StrategyError, match="a count is at least 1"):
        randomk(k)


@pytest.mark.parametrize(
    "codec",
    [randomk(0.1), hadamard(256) >> uniform(4), budget(4.0), budget(4.0, every=2)],
    ids=repr,
)
def test_a_default_device_does_not_move_what_is_drawn_on_the_host(codec: Codec) -> None:
    """Engines measure codecs under the parameters' device; `meta` has no values, so whatever lands
    there fails."""
    xs = values(2, bucket(1000))
    with torch.device("meta"):
        flights = launch(gather(), codec, xs, bucket(1000))
        heard = run(flights)[0].total
    assert torch.equal(heard, run(launch(gather(), codec, xs, bucket(1000)))[0].total)
