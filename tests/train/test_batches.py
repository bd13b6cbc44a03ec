"""The laws of batches: a function of the step, every window once an epoch, ranks apart and together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.train.batches import Batches, permuted, validation_windows

# Every three bytes in a row occur once, so a window of 2 tokens and a target tells where it began.
CORPUS = bytes(value for high in range(200) for value in (255, high))

patient = settings(deadline=None)  # other tests share the cores
worlds = st.integers(1, 4)
batch_sizes = st.integers(1, 6)
steps = st.integers(0, 10**15)
seeds = st.integers(-5, 2**64)


def windows(batches: Batches, step: int) -> list[bytes]:
    """Each row with its last target, as bytes."""
    tokens, targets = batches.at(step)
    return [bytes([*row.tolist(), last]) for row, last in zip(tokens, targets[:, -1].tolist(), strict=True)]


@patient
@given(world=worlds, batch=batch_sizes, step=steps, seed=seeds, context=st.integers(1, 50))
def test_rows_are_windows_of_the_corpus_and_targets_follow_tokens(world: int, batch: int, step: int, seed: int, context: int) -> None:
    tokens, targets = Batches(CORPUS, context=context, batch=batch, seed=seed, world=world, rank=world - 1).at(step)
    assert tokens.shape == targets.shape == (batch, context)
    assert tokens.dtype == targets.dtype == torch.int64
    for row, after in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert bytes([*row, after[-1]]) in CORPUS
        assert row[1:] == after[:-1]


@patient
@given(step=steps, seed=seeds, detour=st.lists(steps, max_size=3))
def test_a_step_is_the_same_whatever_was_read_before(step: int, seed: int, detour: list[int]) -> None:
    fresh = Batches(CORPUS, context=2, batch=4, seed=seed)
    used = Batches(CORPUS, context=2, batch=4, seed=seed)
    for other in detour:
        used.at(other)
    assert windows(fresh, step) == windows(used, step)


@patient
@given(world=worlds, batch=batch_sizes, step=steps, seed=seeds)
def test_ranks_together_read_what_one_large_rank_reads(world: int, batch: int, step: int, seed: int) -> None:
    ranks = (Batches(CORPUS, context=2, batch=batch, seed=seed, rank=rank, world=world) for rank in range(world))
    apart = [row for batches in ranks for row in windows(batches, step)]
    assert apart == windows(Batches(CORPUS, context=2, batch=world * batch, seed=seed), step)


@patient
@given(length=st.integers(4, 60), context=st.integers(1, 3), batch=batch_sizes, seed=seeds, epoch=st.integers(0, 3))
def test_an_epoch_reads_every_window_once(length: int, context: int, batch: int, seed: int, epoch: int) -> None:
    corpus, starts = bytes(range(length)), length - context
    batches = Batches(corpus, context=context, batch=min(batch, starts), seed=seed)
    first, after = epoch * starts, (epoch + 1) * starts  # counted in rows; the epoch may begin and end within a batch
    steps_read = range(first // batches.batch, -(-after // batches.batch))
    read = [row for step in steps_read for row in windows(batches, step)][first % batches.batch :][:starts]
    assert sorted(read) == [corpus[at : at + context + 1] for at in range(starts)]


@patient
@given(size=st.integers(1, 3000), key=st.text(max_size=5))
def test_permuted_is_a_permutation(size: int, key: str) -> None:
    assert permuted(torch.arange(size), size, key).sort().values.equal(torch.arange(size))


def test_seeds_and_epochs_give_other_orders() -> None:
    one, two = (Batches(CORPUS, context=2, batch=8, seed=seed) for seed in (1, 2))
    assert windows(one, 0) != windows(two, 0)
    epoch = one.starts // 2
    assert one.starts == 2 * epoch
    pairs = Batches(CORPUS, context=2, batch=2, seed=1)
    assert [windows(pairs, step) for step in range(20)] != [windows(pairs, step + epoch) for step in range(20)]


def test_windows_fall_evenly_on_a_large_corpus() -> None:
    size, bins, draws = 5_674_092, 20, 8000  # draws: 250 steps of 32 rows
    starts = permuted(torch.arange(draws), size, "0/0")
    counts = torch.bincount(starts * bins // size, minlength=bins)
    chi_square = float(((counts - draws / bins) ** 2 / (draws / bins)).sum())
    assert 5 < chi_square < 45  # 19 degrees of freedom: outside in fewer than 2 of 1000 fair draws
    jumps = torch.corrcoef(torch.stack((starts[1:], starts[:-1])).double())[0, 1]
    assert abs(float(jumps)) < 0.05


def test_a_batch_is_the_callers_to_change() -> None:
    batches = Batches(CORPUS, context=2, batch=1)
    before = windows(batches, 0)
    batches.at(0)[0].zero_()
    assert windows(batches, 0) == before


@patient
@given(length=st.integers(2, 300), context=st.integers(1, 20), count=st.integers(1, 20))
def test_validation_windows_span_the_corpus_and_never_overlap(length: int, context: int, count: int) -> None:
    corpus = bytes(at % 256 for at in range(length))
    if count * context > length - 1:
        with pytest.raises(ValueError, match="take"):
            validation_windows(corpus, context=context, windows=count)
        return
    tokens, targets = validation_windows(corpus, context=context, windows=count)
    assert tokens.shape == targets.shape == (count, context)
    assert tokens.dtype == targets.dtype == torch.int64
    places = [corpus.index(bytes([*row, after[-1]])) for row, after in zip(tokens.tolist(), targets.tolist(), strict=True)]
    if length <= 256:  # beyond it bytes repeat, and so may a window
        assert places[0] == 0
        assert places[-1] == (length - context - 1 if count > 1 else 0)
        assert all(later - earlier >= context for earlier, later in pairwise(places))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context=0"),
        ({"batch": 0}, "batch=0"),
        ({"world": 0}, "world=0"),
        ({"rank": 2}, "ranks count from 0 to 1"),
        ({"rank": -1}, "ranks count from 0 to 1"),
        ({"corpus": b"thin"}, "has 4; take a longer corpus"),
        ({"batch": 3}, "a step needs 6 different windows, but 8 bytes hold 4 of context 4"),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_is_asked(change: dict[str, object], message: str) -> None:
    asked: dict[str, object] = {"corpus": b"thinwire", "context": 4, "batch": 2, "world": 2, **change}
    corpus = asked.pop("corpus")
    with pytest.raises(ValueError, match=message):
        Batches(corpus, **asked)  # type: ignore[arg-type]


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="steps count from 0"):
        Batches(b"thinwire", context=4, batch=1).at(-1)


def test_a_corpus_of_one_window_is_enough() -> None:
    assert windows(Batches(b"thin", context=3, batch=1), 10) == [b"thin"]
