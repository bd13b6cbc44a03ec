"""Which batches of a validation a rank computes."""

from __future__ import annotations

import pytest

from thinwire.train.validation import passes_of


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_batch_counts_once(world: int) -> None:
    for together in (False, True):
        by_rank = [list(passes_of(4, rank, world, together)) for rank in range(world)]
        counted = sorted(index for each in by_rank for index, counts in each if counts)
        assert counted == [0, 1, 2, 3]
        if together:
            assert len({len(each) for each in by_rank}) == 1
