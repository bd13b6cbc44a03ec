"""The driver without a network: what goes wrong is told, with names, and never hangs."""

import pytest
import torch
from torch import Tensor

from tests.drive.hops import bytes_of, flight
from tests.threads import on_threads
from thinwire.core import AllReduce, Driver, Exchange, Flight, Outcome
from thinwire.drive.local import run
from thinwire.errors import FlightError, RankLostError


def ones() -> Tensor:
    return torch.ones(2)


def test_sums_are_in_place_in_rank_order_and_counted() -> None:
    tensors = {rank: torch.tensor([float(rank), 1.0]) for rank in range(3)}
    sent: dict[int, float] = {}
    outcomes = run({rank: flight(AllReduce(tensors[rank], (0, 1, 2))) for rank in tensors}, sent)
    assert all(outcome.total.tolist() == [3.0, 3.0] for outcome in outcomes.values())
    assert all(outcomes[rank].total is tensors[rank] for rank in tensors)
    assert sent == dict.fromkeys(range(3), 2 * 2 / 3 * 8)


def test_groups_reduce_side_by_side() -> None:
    outcomes = run({rank: flight(AllReduce(ones(), (rank % 2, rank % 2 + 2))) for rank in range(4)})
    assert all(outcome.total.tolist() == [2.0, 2.0] for outcome in outcomes.values())


def test_payloads_arrive_as_they_were_when_they_were_sent() -> None:
    payload = torch.tensor([1, 2, 3], dtype=torch.uint8)
    got: dict[int, Tensor] = {}

    def sender() -> Flight[Outcome]:
        yield Exchange(((1, payload),), ())
        payload.zero_()
        return Outcome(torch.zeros(1))

    def receiver() -> Flight[Outcome]:
        got.update((yield Exchange((), ((0, 3),))))
        return Outcome(torch.zeros(1))

    sent: dict[int, float] = {}
    run({0: sender(), 1: receiver()}, sent, order=[0, 1])
    assert got[0].tolist() == [1, 2, 3]
    assert sent == {0: 3.0, 1: 0.0}


def test_nothing_is_moved_for_a_size_of_zero() -> None:
    sent: dict[int, float] = {}
    run(
        {rank: flight(Exchange(((1 - rank, bytes_of(0)),), ((1 - rank, 0),))) for rank in (0, 1)},
        sent,
    )
    assert sent == {0: 0.0, 1: 0.0}


@pytest.mark.parametrize(
    ("flights", "told"),
    [
        (
            {0: flight(Exchange((), ((1, 5),))), 1: flight()},
            "no rank can go on: rank 0 waits in an exchange, for 5 bytes from rank 1",
        ),
        (
            {0: flight(AllReduce(ones(), (0, 1))), 1: flight()},
            r"rank 0 waits in an all-reduce over \(0, 1\)",
        ),
        (
            {0: flight(AllReduce(ones(), (0, 1))), 1: flight(Exchange((), ((0, 8),)))},
            (
                r"rank 0 waits in an all-reduce over \(0, 1\); rank 1 waits in an exchange, for 8 "
                r"bytes from rank 0"
            ),
        ),
        (
            {0: flight(AllReduce(ones(), (0, 1))), 1: flight(AllReduce(ones(), (1,)))},
            r"rank 0 waits in an all-reduce over \(0, 1\)",
        ),
        (
            {0: flight(Exchange(((1, bytes_of(4)),), ())), 1: flight(Exchange((), ((0, 5),)))},
            "rank 1 expects 5 bytes from rank 0 and 4 came: their hops crossed",
        ),
        (
            {0: flight(Exchange(((1, bytes_of(4)),), ())), 1: flight()},
            "nobody took 4 bytes from rank 0 to rank 1",
        ),
        (
            {0: flight(Exchange(((1, bytes_of(4)),), ())), 1: flight(Exchange((), ((0, 0),)))},
            "nobody took 4 bytes from rank 0 to rank 1",
        ),
        (
            {0: flight(AllReduce(ones(), (0, 1))), 1: flight(AllReduce(torch.ones(3), (0, 1)))},
            (
                r"all-reduce over \(0, 1\) of different tensors: \[\(2, torch.float32\), \(3, "
                r"torch.float32\)\]"
            ),
        ),
    ],
    ids=[
        "nobody sends",
        "nobody reduces",
        "crossed kinds",
        "other group",
        "other size",
        "nobody takes",
        "nobody takes, told zero",
        "other numbers",
    ],
)
def test_ranks_that_do_not_meet_are_named(flights: dict[int, Flight[Outcome]], told: str) -> None:
    with pytest.raises(FlightError, match=told):
        run(flights)


def test_a_fabric_joins_threads() -> None:
    def work(driver: Driver) -> list[float]:
        driver.prepare(((0, 1),))
        handles = [
            driver.start(
                flight(AllReduce(torch.full((1,), float(i)), (0, 1, 2))), i % 2, f"flight {i}"
            )
            for i in range(6)
        ]
        landed = [float(handle.wait().total) for handle in reversed(handles)]
        assert all(handle.sent_bytes == pytest.approx(2 * 2 / 3 * 4) for handle in handles)
        assert all(handle.encode_s == handle.wire_s == 0 for handle in handles)
        driver.close()
        return landed

    assert on_threads(3, work, lanes=2) == {
        rank: [15.0, 12.0, 9.0, 6.0, 3.0, 0.0] for rank in range(3)
    }


def test_an_error_in_one_ranks_flight_reaches_all() -> None:
    def bad() -> Flight[Outcome]:
        yield AllReduce(ones(), (0, 1))
        raise ValueError("it fell over")

    def work(driver: Driver) -> None:
        driver.start(
            bad() if driver.rank else flight(AllReduce(ones(), (0, 1))), 0, "step 3 of bucket 1"
        ).wait()

    for error in on_threads(2, work).values():
        assert isinstance(error, FlightError)
        assert str(error) == "step 3 of bucket 1: it fell over"


def test_a_rank_that_never_comes_is_named() -> None:
    def work(driver: Driver) -> str:
        if driver.rank == 1:
            return "stayed away"
        driver.start(flight(AllReduce(ones(), (0, 1, 2))), 0, "step 7 of bucket 0").wait()
        return "landed"

    results = on_threads(3, work, timeout_s=0.2)
    assert results[1] == "stayed away"
    for rank in (0, 2):
        error = results[rank]
        assert isinstance(error, RankLostError)
        assert error.ranks == (1,)
        assert "step 7 of bucket 0: ranks [1] did not come within 0.2 s" in str(error)
