"""Drivers on torch.distributed."""

from __future__ import annotations

from thinwire.drive.torch import _next_generation


def test_drivers_are_counted_by_the_ranks_among_which_they_are() -> None:
    """A rank in two groups has made more drivers than those that share one with it; they must meet
    under the same keys."""
    first = _next_generation((7, 90))
    _next_generation((7, 91))
    assert _next_generation((7, 90)) == first + 1
