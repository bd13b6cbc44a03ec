"""Equal bytes travel once, up a tree and down again, and every rank still gets every rank's."""

from typing import Any

import pytest
import torch

from thinwire.core import RankContext
from thinwire.core.alike import all_gather_alike
from thinwire.core.collective import all_gather
from thinwire.drive.local import run
from thinwire.errors import PayloadError

CPU = torch.device("cpu")


def gathered(values: list[bytes], ranks: list[int] | None = None) -> tuple[Any, dict[int, float]]:
    group = tuple(ranks or range(len(values)))
    sent: dict[int, float] = {}
    flights = {
        rank: all_gather_alike(values[i], RankContext(rank, group, 0, 0), CPU)
        for i, rank in enumerate(group)
    }
    return run(flights, sent), sent


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 7, 8, 9, 33, 64])
@pytest.mark.parametrize("kinds", [1, 2, 3, 1000])
def test_every_rank_has_every_ranks_bytes(world: int, kinds: int) -> None:
    values = [b"x" * (rank % kinds) + bytes([rank % kinds % 256]) for rank in range(world)]
    results, _ = gathered(values)
    assert all(results[rank] == values for rank in range(world))


def test_nothing_to_say_is_a_value_too_and_ranks_may_have_any_numbers() -> None:
    results, _ = gathered([b"", b"a", b""], [3, 5, 11])
    assert results[11] == [b"", b"a", b""]


def test_where_all_hold_the_same_the_bytes_of_all_ranks_grow_as_the_world() -> None:
    own = b"d" * 32
    for world in (64, 512):
        _, sent = gathered([own] * world)
        # a value and its head once up and once down, each after its length
        assert sum(sent.values()) == 2 * (world - 1) * (8 + 20 + len(own))
    contexts = [RankContext(rank, tuple(range(64)), 0, 0) for rank in range(64)]
    sent = {}
    tensor = torch.zeros(32, dtype=torch.uint8)
    run({ctx.rank: all_gather(tensor, ctx) for ctx in contexts}, sent)
    assert sum(sent.values()) == 64 * 63 * (8 + 32)


@pytest.mark.parametrize("text", [b"\x00", b"\xff" * 12, b"\x01" + bytes(7) + b"\x01" + bytes(12)])
def test_a_damaged_message_is_refused(text: bytes) -> None:
    flight = all_gather_alike(b"a", RankContext(0, (0, 1), 0, 0), CPU)
    next(flight)
    flight.send({1: torch.tensor([len(text)]).view(torch.uint8)})
    with pytest.raises(PayloadError, match="rank 1 sent values"):
        flight.send({1: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
