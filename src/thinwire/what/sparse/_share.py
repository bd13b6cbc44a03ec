"""Count k entries, given as a count or as a fraction: what `topk` and `randomk` have in common."""

from __future__ import annotations

import math


def count_of(k: int | float, n: int) -> int:
    """Return how many of n entries: k, or the fraction k of n rounded up; never more than n.

    Example:
        >>> count_of(5, 3), count_of(0.07, 100), count_of(0.071, 100)
        (3, 7, 8)
    """
    return min(
        n, k if isinstance(k, int) else math.ceil(k * n * (1 - 1e-12))
    )  # 0.07 * 100 is 7.000000000000001


def wrong(name: str, k: int | float) -> list[str]:
    """Return what is wrong with k, for the user."""
    if isinstance(k, bool) or not k > 0 or (isinstance(k, float) and k > 1):
        return [f"{name}(k={k}): a count is at least 1; a share (float) lies in (0, 1]"]
    return []
