import pytest
import torch

from thinwire.core import AllReduce, Codec, State
from thinwire.errors import StrategyError
from thinwire.how import native
from thinwire.strategy import Strategy
from thinwire.testing import check_route, seats, specs
from thinwire.what import by_role, cast, feedback, identity, lowrank, randomk, uniform

MANY = specs()["many parts"]


@pytest.mark.parametrize("codec", [identity(), cast(), feedback(lowrank(2)), randomk(20)], ids=repr)
def test_laws(codec: Codec) -> None:
    check_route(native(), codec)


def test_dense_values_are_reduced_where_they_lie() -> None:
    x = torch.randn(MANY.numel)
    state = native().init(identity(), MANY, seats()[1])
    hop = next(native().carry(identity(), x, MANY, state, seats()[1]))
    assert isinstance(hop, AllReduce)
    assert hop.tensor.data_ptr() == x.data_ptr()
    assert hop.group == (1, 2, 5)


def test_each_width_of_number_is_an_all_reduce_of_its_own() -> None:
    codec = by_role(matrix=cast(), embedding=identity())
    state: State = native().init(codec, MANY, seats()[1])
    flight = native().carry(codec, torch.randn(MANY.numel), MANY, state, seats()[1])
    hops = [next(flight)]
    with pytest.raises(StopIteration):
        while True:
            assert isinstance(hops[-1], AllReduce)
            hops.append(flight.send(hops[-1].tensor))
    assert [hop.tensor.dtype for hop in hops if isinstance(hop, AllReduce)] == [torch.float32, torch.float32, torch.bfloat16]


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"its payloads cannot be added unopened. Use gather\(\) for 2 ranks .* two_shot\(\)"):
        Strategy(what=uniform(4), how=native())
