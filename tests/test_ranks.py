"""Ranks of tests start as forks of a server that has loaded what they need."""

import sys
from multiprocessing import forkserver

from tests.ranks import PRELOAD, run_ranks


def _loaded(rank: int) -> list[str]:
    return sorted(sys.modules)


def test_a_rank_imports_nothing_that_ranks_need() -> None:
    """Another list of modules, set by any test file, would cost each rank seconds."""
    assert forkserver._forkserver._preload_modules == PRELOAD  # type: ignore[attr-defined]
    for modules in run_ranks(2, _loaded):
        assert {*PRELOAD, "transformers", "thinwire.train.job"} <= set(modules)
