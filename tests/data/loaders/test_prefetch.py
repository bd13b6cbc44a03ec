"""What is made ahead is what would have been made on demand, in order, and never beyond what was
asked."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data import Batches, Prefetch

PATIENCE_S = 20


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.integers(0, 11), max_size=15),
    depth=st.integers(1, 4),
    threads=st.integers(1, 3),
)
def test_any_steps_in_any_order_are_those_of_the_batches(
    steps: list[int], depth: int, threads: int
) -> None:
    batches = Batches(torch.arange(50), length=3, batch=2)
    with Prefetch(batches.at, stop=12, depth=depth, threads=threads) as ahead:
        for step in steps:
            assert ahead.at(step).equal(batches.at(step))


def test_the_next_ones_are_made_while_nobody_asks_and_none_beyond_the_depth_or_the_end() -> None:
    made: list[int] = []
    reached = threading.Semaphore(0)

    def make(step: int) -> int:
        made.append(step)
        reached.release()
        return step

    with Prefetch(make, stop=5, depth=3) as ahead:
        assert ahead.at(0) == 0
        for _ in range(4):
            assert reached.acquire(timeout=PATIENCE_S)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]
        for step in (1, 2, 3, 4):
            assert ahead.at(step) == step
        with pytest.raises(ValueError, match="the last step is 4"):
            ahead.at(5)
    assert made == [0, 1, 2, 3, 4]


def test_only_waiting_is_metered() -> None:
    gate = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            assert gate.wait(PATIENCE_S)
        return step

    with Prefetch(make) as ahead:
        ahead.at(0)
        before = ahead.wait_s
        threading.Timer(0.2, gate.set).start()
        ahead.at(1)
        assert 0.15 < ahead.wait_s - before < PATIENCE_S
        time.sleep(0.1)
        before = ahead.wait_s
        ahead.at(2)
        assert ahead.wait_s - before < 0.1


def test_a_failure_comes_with_its_own_step_and_others_stay() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the wire is cut")
        return step

    with Prefetch(make, depth=4) as ahead:
        assert [ahead.at(0), ahead.at(1)] == [0, 1]
        with pytest.raises(OSError, match="the wire is cut"):
            ahead.at(2)
        assert ahead.at(3) == 3


def test_one_thread_goes_step_by_step() -> None:
    inside: list[int] = []

    def make(step: int) -> list[int]:
        inside.append(step)
        time.sleep(0.002)
        return list(inside)

    with Prefetch(make, depth=4) as ahead:
        assert [ahead.at(step) for step in range(10)] == [
            list(range(step + 1)) for step in range(10)
        ]


def test_no_thread_stays() -> None:
    before = threading.enumerate()

    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if each not in before]

    with Prefetch(lambda step: step, threads=2) as ahead:
        ahead.at(0)
        assert threads()
    assert not threads()
    with pytest.raises(RuntimeError):
        ahead.at(1)


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"threads": 0}])
def test_nothing_ahead_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Prefetch(int, **wrong)
