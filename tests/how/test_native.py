import pytest
import torch

from thinwire.core import AllReduce, Codec, State
from thinwire.errors import StrategyError
from thinwire.how import native
from thinwire.strategy import Strategy
from thinwire.testing import check_route, contexts, specs
from thinwire.what import by_role, cast, feedback, identity, lowrank, randomk, uniform

MANY = specs()["many parts"]


def test_laws() -> None:
    check_route(native(), identity())


@pytest.mark.parametrize("codec", [cast(), feedback(lowrank(2)), randomk(20)], ids=repr)
def test_laws_with_a_lossy_codec(codec: Codec) -> None:
    check_route(native(), codec, worlds=(1, 2, 4, 7))


def test_dense_values_are_reduced_where_they_lie() -> None:
    x = torch.randn(MANY.numel)
    state = native().init(identity(), MANY, contexts()[1])
    hop = next(native().carry(identity(), x, MANY, state, contexts()[1]))
    assert isinstance(hop, AllReduce)
    assert hop.tensor.data_ptr() == x.data_ptr()
    assert hop.group == (1, 2, 5)


def test_each_width_of_number_is_an_all_reduce_of_its_own() -> None:
    codec = by_role(matrix=cast(), embedding=identity())
    state: State = native().init(codec, MANY, contexts()[1])
    flight = native().carry(codec, torch.randn(MANY.numel), MANY, state, contexts()[1])
    hop, dtypes = next(flight), []
    while isinstance(hop, AllReduce):
        dtypes.append(hop.tensor.dtype)
        try:
            hop = flight.send(hop.tensor)
        except StopIteration:
            break
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(
        StrategyError,
        match=r"its payloads cannot be added unopened. Use gather\(\) for 2 ranks .* two_shot\(\)",
    ):
        Strategy(what=uniform(4), how=native())
