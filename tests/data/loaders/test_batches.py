"""The laws of batches: a function of the step, every window once an epoch, ranks apart and
together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data.loaders.batches import Batches, permuted, validation_windows
from thinwire.errors import DataError

# Every three tokens in a row occur once, so a window of 3 tells where it began.
CORPUS = torch.tensor([value for high in range(200) for value in (255, high)], dtype=torch.int32)

patient = settings(deadline=None, max_examples=25)  # other tests share the cores
worlds = st.integers(1, 4)
batch_sizes = st.integers(1, 6)
steps = st.integers(0, 10**15)
seeds = st.integers(-5, 2**64)


def windows(batches: Batches, step: int) -> list[list[int]]:
    """Each row as numbers."""
    rows: list[list[int]] = batches.at(step).tolist()
    return rows


@patient
@given(world=worlds, batch=batch_sizes, step=steps, seed=seeds, length=st.integers(1, 50))
def test_rows_are_windows_of_the_corpus(
    world: int, batch: int, step: int, seed: int, length: int
) -> None:
    rows = Batches(CORPUS, length=length, batch=batch, seed=seed, world=world, rank=world - 1).at(
        step
    )
    assert rows.shape == (batch, length)
    assert rows.dtype == torch.int64
    everywhere = CORPUS.long().unfold(0, length, 1)
    assert all((everywhere == row).all(dim=1).any() for row in rows)


@patient
@given(step=steps, seed=seeds, detour=st.lists(steps, max_size=3))
def test_a_step_is_the_same_whatever_was_read_before(
    step: int, seed: int, detour: list[int]
) -> None:
    fresh = Batches(CORPUS, length=3, batch=4, seed=seed)
    used = Batches(CORPUS, length=3, batch=4, seed=seed)
    for other in detour:
        used.at(other)
    assert windows(fresh, step) == windows(used, step)


@patient
@given(world=worlds, batch=batch_sizes, step=steps, seed=seeds)
def test_ranks_together_read_what_one_large_rank_reads(
    world: int, batch: int, step: int, seed: int
) -> None:
    ranks = (
        Batches(CORPUS, length=3, batch=batch, seed=seed, rank=rank, world=world)
        for rank in range(world)
    )
    apart = [row for batches in ranks for row in windows(batches, step)]
    assert apart == windows(Batches(CORPUS, length=3, batch=world * batch, seed=seed), step)


@patient
@given(
    size=st.integers(4, 60),
    length=st.integers(1, 4),
    batch=batch_sizes,
    seed=seeds,
    epoch=st.integers(0, 3),
)
def test_an_epoch_reads_every_window_once(
    size: int, length: int, batch: int, seed: int, epoch: int
) -> None:
    corpus, starts = torch.arange(size), size - length + 1
    batches = Batches(corpus, length=length, batch=min(batch, starts), seed=seed)
    first, after = (
        epoch * starts,
        (epoch + 1) * starts,
    )  # counted in rows; the epoch may begin and end within a batch
    steps_read = range(first // batches.batch, -(-after // batches.batch))
    read = [row for step in steps_read for row in windows(batches, step)][first % batches.batch :][
        :starts
    ]
    assert sorted(read) == [list(range(at, at + length)) for at in range(starts)]


@patient
@given(size=st.integers(1, 3000), key=st.text(max_size=5))
def test_permuted_is_a_permutation(size: int, key: str) -> None:
    assert permuted(torch.arange(size), size, key).sort().values.equal(torch.arange(size))


def test_the_order_is_the_one_that_older_runs_had() -> None:
    assert Batches(torch.arange(256), length=2, batch=4, seed=7).at(3)[:, 0].tolist() == [
        228,
        232,
        75,
        40,
    ]


def test_seeds_and_epochs_give_other_orders() -> None:
    one, two = (Batches(CORPUS, length=3, batch=8, seed=seed) for seed in (1, 2))
    assert windows(one, 0) != windows(two, 0)
    epoch = one.starts // 2
    assert one.starts == 2 * epoch
    pairs = Batches(CORPUS, length=3, batch=2, seed=1)
    assert [windows(pairs, step) for step in range(20)] != [
        windows(pairs, step + epoch) for step in range(20)
    ]


def test_windows_fall_evenly_on_a_large_corpus() -> None:
    size, bins, draws = 5_674_092, 20, 8000  # draws: 250 steps of 32 rows
    starts = permuted(torch.arange(draws), size, "0/0")
    counts = torch.bincount(starts * bins // size, minlength=bins)
    chi_square = float(((counts - draws / bins) ** 2 / (draws / bins)).sum())
    assert 5 < chi_square < 45  # 19 degrees of freedom: outside in fewer than 2 of 1000 fair draws
    jumps = torch.corrcoef(torch.stack((starts[1:], starts[:-1])).double())[0, 1]
    assert abs(float(jumps)) < 0.05


def test_a_batch_is_the_callers_to_change() -> None:
    batches = Batches(CORPUS.long(), length=3, batch=1)
    before = windows(batches, 0)
    batches.at(0).zero_()
    assert windows(batches, 0) == before


@patient
@given(size=st.integers(1, 300), length=st.integers(1, 20), count=st.integers(1, 20))
def test_validation_windows_span_the_corpus_and_never_overlap(
    size: int, length: int, count: int
) -> None:
    if length > size:
        with pytest.raises(DataError, match=f"it has {size} tokens, and {length} are needed"):
            validation_windows(torch.arange(size), length=length, windows=count)
        return
    rows = validation_windows(torch.arange(size, dtype=torch.int32), length=length, windows=count)
    assert rows.shape == (min(count, size // length), length)
    assert rows.dtype == torch.int64
    starts = rows[:, 0].tolist()
    assert rows.tolist() == [list(range(start, start + length)) for start in starts]
    assert starts[0] == 0
    assert starts[-1] == (size - length if len(starts) > 1 else 0)
    assert all(later - earlier >= length for earlier, later in pairwise(starts))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"length": 0}, ValueError, "length=0"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"world": 0}, ValueError, "world=0"),
        ({"rank": 2}, ValueError, "ranks count from 0 to 1"),
        ({"rank": -1}, ValueError, "ranks count from 0 to 1"),
        ({"tokens": torch.zeros(8)}, ValueError, "no vector of integers"),
        ({"tokens": torch.zeros((2, 4), dtype=torch.int32)}, ValueError, "no vector of integers"),
        ({"tokens": torch.arange(4)}, DataError, "4 tokens hold 0 of length 5; take a longer text"),
        (
            {"batch": 3},
            DataError,
            "a step needs 6 different windows, but 8 tokens hold 4 of length 5",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_is_asked(
    change: dict[str, object], kind: type[Exception], message: str
) -> None:
    asked: dict[str, object] = {
        "tokens": torch.arange(8),
        "length": 5,
        "batch": 2,
        "world": 2,
        **change,
    }
    tokens = asked.pop("tokens")
    with pytest.raises(kind, match=message):
        Batches(tokens, **asked)  # type: ignore[arg-type]


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="steps count from 0"):
        Batches(torch.arange(8), length=5, batch=1).at(-1)


def test_a_corpus_of_one_window_is_enough() -> None:
    assert windows(Batches(torch.arange(4), length=4, batch=1), 10) == [[0, 1, 2, 3]]
