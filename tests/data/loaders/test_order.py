"""The laws of orders: every sample once an epoch, whoever reads; each rank stays in its own part of
the shards."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from thinwire.data.loaders.order import Order, Reader, scattered, striped

patient = settings(deadline=None, max_examples=25)  # other tests share the cores
seeds = st.integers(-5, 2**64)
shards = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)
powers = st.sampled_from([1, 2, 4, 8, 64])


@st.composite
def orders(draw: st.DrawFn) -> Order:
    if draw(st.booleans()):
        return scattered(draw(st.integers(1, 500)), draw(seeds))
    return striped.over(draw(shards), draw(seeds), draw(powers))


@st.composite
def readers(draw: st.DrawFn) -> tuple[int, int]:
    return draw(st.integers(1, 5)), draw(st.integers(1, 7))  # world, batch


def rows_of(order: Order, first: int, count: int) -> torch.Tensor:
    return order.of(torch.arange(first, first + count))


def step_of(
    order: Order, step: int, world: int, batch: int, origin: tuple[int, int] = (0, 0)
) -> list[list[int]]:
    """What each rank reads at a step."""
    return [order.at(step, Reader(batch, rank, world, origin)).tolist() for rank in range(world)]


@patient
@given(order=orders(), epoch=st.integers(0, 2))
def test_an_epoch_is_every_sample_once(order: Order, epoch: int) -> None:
    assert (
        rows_of(order, epoch * order.size, order.size).sort().values.equal(torch.arange(order.size))
    )


@patient
@given(order=orders(), who=readers(), step=st.integers(0, 10**6))
def test_ranks_together_read_what_one_reads_and_each_its_batch(
    order: Order, who: tuple[int, int], step: int
) -> None:
    world, batch = who
    ranks = step_of(order, step, world, batch)
    assert {len(rank) for rank in ranks} == {batch}
    assert sorted(chain(*ranks)) == sorted(
        rows_of(order, step * world * batch, world * batch).tolist()
    )


@patient
@given(
    order=orders(), whos=st.lists(st.tuples(readers(), st.integers(0, 6)), min_size=1, max_size=4)
)
def test_through_any_worlds_the_sequence_is_the_one_of_a_run_that_never_stopped(
    order: Order, whos: list[tuple[tuple[int, int], int]]
) -> None:
    step = rows = 0
    read: list[int] = []
    for (world, batch), steps in whos:
        origin = (step, rows)
        for _ in range(steps):
            here = list(chain(*step_of(order, step, world, batch, origin)))
            assert sorted(here) == sorted(rows_of(order, rows, world * batch).tolist())
            read += here
            step, rows = step + 1, rows + world * batch
        assert Reader(batch, 0, world, origin).resized(step, batch=3, rank=0, world=1).origin == (
            step,
            rows,
        )
    for epoch in range(
        rows // order.size
    ):  # nothing twice and nothing lost, wherever worlds changed
        assert len(set(rows_of(order, epoch * order.size, order.size).tolist())) == order.size
    whole, rest = divmod(rows, order.size)
    counts = torch.bincount(torch.tensor(read, dtype=torch.int64), minlength=order.size)
    assert (counts - whole).clamp(0).sum() == rest
    assert set((counts - whole).tolist()) <= {0, 1}


@patient
@given(order=orders(), who=readers(), steps=st.lists(st.integers(0, 1000), min_size=2, max_size=4))
def test_a_step_does_not_ask_what_was_read_before(
    order: Order, who: tuple[int, int], steps: list[int]
) -> None:
    alone = {step: step_of(order, step, *who) for step in sorted(steps)}
    assert all(step_of(order, step, *who) == alone[step] for step in steps)


def shares(order: striped, world: int, batch: int) -> list[float]:
    """The share of all samples that lie in shards which each rank touches in the first epoch."""
    bounds = torch.tensor(order.shards).cumsum(0)
    found = []
    for rank in range(world):
        steps = range(order.size // (world * batch))
        read = torch.cat([order.at(step, Reader(batch, rank, world)) for step in steps])
        touched = torch.searchsorted(bounds, read, right=True).unique()
        found.append(sum(order.shards[each] for each in touched.tolist()) / order.size)
    return found


@pytest.mark.parametrize(("world", "batch"), [(2, 8), (4, 8), (8, 16), (2, 64)])
def test_a_host_fetches_its_share(world: int, batch: int) -> None:
    order = striped.over([40] * 256, seed=3)
    assert max(shares(order, world, batch)) == pytest.approx(1 / world)


@pytest.mark.parametrize(("world", "batch"), [(3, 8), (3, 32), (5, 12), (7, 10)])
def test_a_host_fetches_little_more_than_its_share_in_odd_worlds(world: int, batch: int) -> None:
    order = striped.over([30] * 300 + [17] * 20, seed=3)
    each = shares(order, world, batch)
    assert 1 / world <= max(each) < 1 / world + 0.25
    assert max(shares(order, world, 8 * batch)) < max(*each, 1 / world + 0.05)


def test_a_batch_mixes_as_many_shards_as_it_has_rows() -> None:
    order = striped.over([1000] * 128, seed=1)
    rows = order.at(5, Reader(16))
    assert len((rows // 1000).unique()) == 16


@patient
@given(sizes=shards, seed=seeds, world=st.integers(1, 4), step=st.integers(0, 50))
def test_the_shards_ahead_are_those_that_are_read(
    sizes: list[int], seed: int, world: int, step: int
) -> None:
    order = striped.over(sizes, seed)
    reader = Reader(4, world - 1, world)
    bounds = torch.tensor(sizes).cumsum(0)
    read = torch.cat([order.at(each, reader) for each in range(step, step + 3)])
    ahead = order.shards_ahead(step, 3, reader)
    assert ahead == list(dict.fromkeys(torch.searchsorted(bounds, read, right=True).tolist()))
    assert all(sizes[each] for each in ahead), "an empty shard is never read"


@patient
@given(sizes=shards, one=seeds, two=seeds)
def test_seeds_and_epochs_give_other_orders(sizes: list[int], one: int, two: int) -> None:
    assume(one != two and sum(sizes) > 30)
    first = striped.over(sizes, one)
    assert not rows_of(first, 0, 30).equal(rows_of(striped.over(sizes, two), 0, 30))
    assert not rows_of(first, 0, 30).equal(rows_of(first, first.size, 30))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: scattered(0), "nothing to put in order"),
        (lambda: striped(5, 0, (2, 2)), "hold 4 samples, not 5"),
        (lambda: striped.over([5], stripes=6), "must be a power of two"),
        (lambda: Reader(0), "batch=0"),
        (lambda: Reader(1, 2, 2), "ranks count from 0 to 1"),
        (lambda: Reader(1, origin=(-1, 0)), "neither below 0"),
        (lambda: Reader(1, origin=(5, 9)).first(4), "steps count from 5"),
    ],
)
def test_what_cannot_be_is_refused(make, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=line):
        make()
