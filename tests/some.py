"""Thin out many cases of a kind: the suite takes some of them, and `make long` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], most: int) -> list[Any]:
    """Return all cases as parameters; all but `most` of them, evenly spaced, are marked `long`."""
    listed = list(cases)
    taken = {round(i * (len(listed) - 1) / max(most - 1, 1)) for i in range(most)}
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)
        for i, case in enumerate(listed)
        for marks in [() if i in taken else pytest.mark.long]
    ]
