"""A pickle that leaves a mark where it is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Planted:
    """Calls a function as soon as it is unpickled; by default it makes a folder, in place of
    anything worse."""

    def __init__(self, mark: Path, function: Callable[..., Any] | None = None, *args: Any) -> None:
        self._call = (function, args) if function is not None else (_run, (str(mark),))

    def __reduce__(self) -> Any:
        return self._call


def _run(mark: str) -> None:
    Path(mark).mkdir()
