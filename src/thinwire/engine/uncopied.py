"""Hook on to a module without being copied with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from thinwire.engine.compiled import untraced


class Uncopied:
    """A hook that calls a function with its module; in a copy of the module it does nothing."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[nn.Module], None] | None = None) -> None:
        self._call = call

    @untraced
    def __call__(self, module: nn.Module, *_: Any) -> None:
        if self._call is not None:
            self._call(module)

    def __deepcopy__(self, _: Any) -> Uncopied:
        return Uncopied()

    def __reduce__(self) -> Any:
        return (Uncopied, ())
