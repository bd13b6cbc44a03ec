"""Collectives as flights: what every rank returns, the bytes that travel, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.how.flights import contexts_of
from tests.threads import on_threads
from thinwire.core import Driver, Exchange, Outcome
from thinwire.core.collective import (
    LENGTH_BYTES,
    all_gather,
    all_reduce,
    all_to_all,
    combine,
    receive,
    send,
    tensors_in,
)
from thinwire.drive.local import run
from thinwire.errors import FlightError, PayloadError

WORLDS = range(1, 10)
CPU = torch.device("cpu")


def message(sender: int, target: int, nbytes: int) -> Tensor:
    """Bytes that only this sender has for only this target."""
    return ((torch.arange(nbytes) * 31 + 7 * sender + 3 * target) % 251).to(torch.uint8)


@pytest.mark.parametrize("world", WORLDS)
def test_all_reduce_leaves_the_sum_on_every_rank(world: int) -> None:
    own = {rank: torch.tensor([1.0 + rank, -2.0 * rank]) for rank in range(world)}
    summed = run({rank: all_reduce(own[rank], ctx) for rank, ctx in contexts_of(world).items()})
    total = torch.tensor([world * (world + 1) / 2, -1.0 * world * (world - 1)])
    for rank in range(world):
        assert summed[rank] is own[rank]
        assert torch.equal(summed[rank], total)


@pytest.mark.parametrize("world", WORLDS)
def test_all_gather_of_uneven_bytes_sends_lengths_first(world: int) -> None:
    sizes = [0, 5, 300, 1, 0, 64, 2, 9, 70][:world]
    sent: dict[int, float] = {}
    gathered = run(
        {
            rank: all_gather(message(rank, 0, sizes[rank]), ctx)
            for rank, ctx in contexts_of(world).items()
        },
        sent,
    )
    for rank in range(world):
        assert [each.tolist() for each in gathered[rank]] == [
            message(other, 0, sizes[other]).tolist() for other in range(world)
        ]
        assert sent[rank] == (world - 1) * (LENGTH_BYTES + sizes[rank])


@pytest.mark.parametrize("world", WORLDS)
def test_all_gather_of_one_size_sends_the_bytes_alone(world: int) -> None:
    sent: dict[int, float] = {}
    gathered = run(
        {
            rank: all_gather(message(rank, 0, 11), ctx, same_size=True)
            for rank, ctx in contexts_of(world).items()
        },
        sent,
    )
    for rank in range(world):
        assert torch.equal(
            torch.stack(gathered[rank]),
            torch.stack([message(other, 0, 11) for other in range(world)]),
        )
        assert sent[rank] == 11 * (world - 1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("world", WORLDS)
def test_all_to_all_gives_each_rank_its_own_bytes(world: int, known: bool) -> None:
    def size(sender: int, target: int) -> int:
        return (3 * sender + 5 * target) % 4 * 10  # some messages are empty

    flights = {
        rank: all_to_all(
            {target: message(rank, target, size(rank, target)) for target in range(world)},
            ctx,
            nbytes={other: size(other, rank) for other in range(world)} if known else None,
        )
        for rank, ctx in contexts_of(world).items()
    }
    received = run(flights)
    for rank in range(world):
        assert set(received[rank]) == set(range(world))
        for sender, payload in received[rank].items():
            assert torch.equal(payload, message(sender, rank, size(sender, rank)))


def test_all_to_all_of_a_part_moves_only_that() -> None:
    """Each rank sends to the next one alone, and names whom it receives from."""
    sent: dict[int, float] = {}
    received = run(
        {
            rank: all_to_all({(rank + 1) % 4: message(rank, 0, 6)}, ctx, nbytes={(rank - 1) % 4: 6})
            for rank, ctx in contexts_of(4).items()
        },
        sent,
    )
    for rank in range(4):
        assert list(received[rank]) == [(rank - 1) % 4]
        assert torch.equal(received[rank][(rank - 1) % 4], message((rank - 1) % 4, 0, 6))
    assert set(sent.values()) == {6}


def test_all_to_all_refuses_a_rank_without_a_message_where_lengths_travel() -> None:
    with pytest.raises(ValueError, match=r"nothing for ranks \[2\]"):
        next(all_to_all({1: message(0, 1, 3)}, contexts_of(3)[0]))


@pytest.mark.parametrize("world", WORLDS)
def test_combine_folds_every_ranks_bytes_in_log_rounds(world: int) -> None:
    random_bytes = random.Random(world)
    own = [
        bytes(random_bytes.randrange(256) & random_bytes.randrange(256) for _ in range(5))
        for _ in range(world)
    ]
    sent: dict[int, float] = {}
    combined = run(
        {
            rank: combine(torch.tensor(list(own[rank]), dtype=torch.uint8), ctx, torch.bitwise_or)
            for rank, ctx in contexts_of(world).items()
        },
        sent,
    )
    expected = [0] * 5
    for each in own:
        expected = [a | b for a, b in zip(expected, each, strict=True)]
    assert all(folded.tolist() == expected for folded in combined.values())
    assert set(sent.values()) == {5.0 * (world - 1).bit_length()}


@pytest.mark.parametrize("nbytes", [0, 1, 4000])
@pytest.mark.parametrize("known", [True, False])
def test_receive_returns_what_send_sends(nbytes: int, known: bool) -> None:
    sent: dict[int, float] = {}
    results = run(
        {
            0: send(message(0, 2, nbytes), 2, size_known=known),
            1: all_reduce(torch.zeros(1), contexts_of(1)[0]),  # takes no part
            2: receive(0, CPU, nbytes=nbytes if known else None),
        },
        sent,
    )
    assert results[0] is None
    assert torch.equal(results[2], message(0, 2, nbytes))
    assert sent == {0: nbytes + (0 if known else LENGTH_BYTES), 1: 0, 2: 0}


@pytest.mark.parametrize("announced", [-1, 33, 1 << 62])
def test_a_length_that_nobody_may_send_is_refused_before_memory_is_taken(announced: int) -> None:
    length = torch.tensor([announced]).view(torch.uint8)

    def liar() -> Any:
        yield Exchange(((1, length),), ((1, LENGTH_BYTES),))

    for flight in (
        all_gather(message(1, 0, 4), contexts_of(2)[1], max_bytes=32),
        receive(0, CPU, max_bytes=32),
    ):
        lying = {0: liar(), 1: flight}
        if flight.__name__ == "receive":
            lying[0] = (hop for hop in [Exchange(((1, length),), ())])
        with pytest.raises(PayloadError, match=f"rank 0 announces a message of {announced} bytes"):
            run(lying)


def test_a_driver_hands_on_what_a_flight_returns() -> None:
    def work(driver: Driver) -> Any:
        ctx = contexts_of(3)[driver.rank]
        handle = driver.start(all_gather(message(driver.rank, 0, 3), ctx), driver.lanes, "gather")
        return [each.tolist() for each in handle.wait()], handle.sent_bytes

    results = on_threads(3, work)
    expected = [message(rank, 0, 3).tolist() for rank in range(3)]
    assert results == dict.fromkeys(range(3), (expected, 2.0 * (LENGTH_BYTES + 3)))


def test_a_refused_length_is_a_flights_error() -> None:
    """The error of one rank reaches the others, as that of every flight does."""

    def work(driver: Driver) -> Any:
        ctx = contexts_of(2)[driver.rank]
        flight = all_gather(message(driver.rank, 0, 40), ctx, max_bytes=39)
        return driver.start(flight, driver.lanes, "gather").wait()

    errors = on_threads(2, work)
    for rank in range(2):
        assert isinstance(errors[rank], FlightError)
        assert "announces a message of 40 bytes where at most 39" in str(errors[rank])


def test_tensors_in_finds_the_tensors_of_any_result() -> None:
    one, other = torch.zeros(1), torch.ones(2)
    assert list(tensors_in(Outcome(one))) == [one]
    assert [id(each) for each in tensors_in({0: one, 1: [other, (one,)]})] == [
        id(one),
        id(other),
        id(one),
    ]
    assert list(tensors_in(None)) == list(tensors_in(b"bytes")) == []
