import pytest
import torch

from tests.fakes import FakeBucket
from thinwire.core import Codec, Schedule, State
from thinwire.errors import StrategyError
from thinwire.how import gather, hierarchical, native
from thinwire.on import parameters
from thinwire.strategy import Strategy
from thinwire.what import by_role, cast, feedback, identity, randomk, topk
from thinwire.when import delayed, every


def test_shares_of_parameters_sum_to_their_weighted_mean() -> None:
    buckets = [FakeBucket(torch.full((3,), value)) for value in (1.0, 4.0)]
    total = sum(parameters().read(bucket, State(), share) for bucket, share in zip(buckets, (0.25, 0.75), strict=True))
    assert isinstance(total, torch.Tensor)
    assert buckets[0].flat.tolist() == [1.0] * 3
    for bucket in buckets:
        parameters().write(bucket, total, State())
        assert bucket.flat.tolist() == [3.25] * 3
    assert parameters().common(buckets[0], State()) is None  # between landings each rank has its own


@pytest.mark.parametrize(
    ("when", "what", "told"),
    [
        (every(4), topk(0.1), "a sparse mean would erase them"),
        (every(4), randomk(0.1, unbiased=True), "a sparse mean would erase them"),
        (every(4), randomk(0.1) >> cast(), "a sparse mean would erase them"),
        (every(4), feedback(randomk(0.1)), "a sparse mean would erase them"),
        (every(4), by_role(vector=cast()), "its errors would be written into the weights"),
        (delayed(1, every(4)), identity(), "would undo the steps taken meanwhile"),
    ],
    ids=repr,
)
def test_what_would_harm_weights_is_refused(when: Schedule, what: Codec, told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        Strategy(when, what, gather(), parameters())


def test_only_what_a_mean_speaks_of_is_replaced() -> None:
    bucket = FakeBucket(torch.tensor([1.0, 2.0, 3.0]), mask=torch.tensor([True, False, True]))
    parameters().write(bucket, torch.tensor([7.0, 0.0, 0.0]), State())
    assert bucket.flat.tolist() == [7.0, 2.0, 0.0], "a mean of zero is a mean"


def test_a_route_that_hides_the_lot_is_refused() -> None:
    assert Strategy(what=randomk(0.1), how=gather(), on=parameters())
    with pytest.raises(StrategyError, match="does not tell which entries were drawn"):
        Strategy(what=randomk(0.1), how=hierarchical(native(), native(), 2), on=parameters())
