"""Time a phase mark (`thinwire.core.phase`) and torch's own record_function, with and without a
profiler.

    python -m benchmarks.phases
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch
from torch.profiler import record_function

from benchmarks.common import emit, parser, table
from thinwire.core.phase import phase

CALLS, REPEATS = 2000, 20


def main() -> None:
    arguments = parser(__doc__).parse_args()
    marks: dict[str, Callable[[], None]] = {"phase": _ours, "record_function": _theirs}
    rows = [
        {"mark": name, "profiler": "none", "microseconds": _microseconds(mark, CALLS)}
        for name, mark in marks.items()
    ]
    for name, mark in marks.items():
        with torch.profiler.profile():
            rows.append(
                {"mark": name, "profiler": "torch", "microseconds": _microseconds(mark, 200)}
            )
    table(list(rows[0]), [list(row.values()) for row in rows])
    emit(arguments.json, {"rows": rows})


def _microseconds(mark: Callable[[], None], calls: int) -> float:
    """Return the least microseconds of one mark over several repeats."""
    return round(1e6 * min(timeit.repeat(mark, number=calls, repeat=REPEATS)) / calls, 2)


def _ours() -> None:
    with phase("wait", 3):
        pass


def _theirs() -> None:
    with record_function("thinwire::wait"):
        pass


if __name__ == "__main__":
    main()
