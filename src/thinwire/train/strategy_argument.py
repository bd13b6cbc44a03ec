"""Read a strategy from a command line: a recipe's name with settings, or the path of a TOML file.

    powersgd                    a recipe as it is
    diloco,period=60,lr=0.5     a recipe with some of its settings
    mine.toml                   what `Strategy.to_toml` wrote

What cannot be is refused with every reason at once, like any strategy.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinwire.errors import StrategyError
from thinwire.strategy import Strategy, recipes
from thinwire.text.words import name_and_settings, near, settings


def strategy_from(text: str) -> Strategy:
    """Return the strategy that `text` names.

    Raises:
        StrategyError: no such recipe, setting or file, a value of another type, or a strategy that
            cannot be; all reasons at once.

    Example:
        >>> strategy_from("powersgd,rank=2") == recipes.powersgd(rank=2)
        True
        >>> strategy_from("powersdg")
        Traceback (most recent call last):
        ...
        thinwire.errors.StrategyError: no recipe is called 'powersdg'; did you mean 'powersgd'? ...
    """
    # A path is a file; all else is a recipe with settings.
    if text.endswith(".toml") or os.sep in text:
        return _from_file(Path(text))
    name, pairs = name_and_settings(text)
    makers = recipes.names()
    if name not in makers:
        # A known name with something else behind it than a comma is a typing slip of its own.
        begins = re.match(r"\w+", name)
        if begins and begins[0] in makers:
            raise StrategyError(
                f"no recipe is called {name!r}; settings follow a comma, as in "
                f"{begins[0]},key=value"
            )
        raise StrategyError(
            f"no recipe is called {name!r}{near(name, makers)} There are: {', '.join(makers)}; or "
            "give a .toml file"
        )
    return makers[name](**_settings(name, makers[name], pairs))


def _from_file(path: Path) -> Strategy:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise StrategyError(f"the strategy {str(path)!r} cannot be read: {reason}") from error
    try:
        return Strategy.from_toml(text)
    except StrategyError as error:
        raise StrategyError([f"{path}: {reason}" for reason in error.reasons]) from error


def _settings(name: str, maker: Callable[..., Strategy], pairs: list[str]) -> dict[str, Any]:
    """Return `key=value` pairs as the recipe's arguments."""
    parameters, types = inspect.signature(maker).parameters, typing.get_type_hints(maker)
    problems: list[str] = []
    values = settings(name, pairs, {key: types[key] for key in parameters}, problems)
    given = {piece.partition("=")[0].strip() for piece in pairs}
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            problems.append(f"{name} needs {key}: say {name},{key}=<{types[key].__name__}>")
    if problems:
        raise StrategyError(problems)
    return values
