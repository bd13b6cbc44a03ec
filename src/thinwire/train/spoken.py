"""A strategy as one says it on a command line: a recipe's name with its settings, or the path of a TOML file.

    powersgd                    a recipe as it is
    diloco,period=60,lr=0.5     a recipe with some of its settings
    mine.toml                   what `Strategy.to_toml` wrote

What cannot be is refused with every reason at once, like any strategy.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinwire import recipes
from thinwire.errors import StrategyError
from thinwire.strategy import Strategy


def strategy_from(text: str) -> Strategy:
    """The strategy that `text` names.

    Raises:
        StrategyError: no such recipe, setting or file, a value of another type, or a strategy that cannot be; all reasons at once.

    Example:
        >>> strategy_from("powersgd,rank=2") == recipes.powersgd(rank=2)
        True
        >>> strategy_from("powersdg")
        Traceback (most recent call last):
        ...
        thinwire.errors.StrategyError: no recipe is called 'powersdg'; did you mean 'powersgd'? There are: dense, ...
    """
    if text.endswith(".toml") or os.sep in text:
        return _from_file(Path(text))
    name, *settings = (piece.strip() for piece in text.split(","))
    makers = recipes.names()
    if name not in makers:
        raise StrategyError(f"no recipe is called {name!r}{_near(name, list(makers))} There are: {', '.join(makers)}; or give a .toml file")
    return makers[name](**_settings(name, makers[name], settings))


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


def _settings(name: str, maker: Callable[..., Strategy], settings: list[str]) -> dict[str, Any]:
    """`key=value` pieces as the recipe's arguments."""
    parameters, types = inspect.signature(maker).parameters, typing.get_type_hints(maker)
    known = f"{name} has: {', '.join(parameters) or 'no settings'}"
    values: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, equals, value = (piece.strip() for piece in setting.partition("="))
        if not equals:
            problems.append(f"{setting!r} is no setting such as key=value; {known}")
        elif key not in parameters:
            problems.append(f"{name} has no setting {key!r}{_near(key, list(parameters))} {known}")
        elif key in values:
            problems.append(f"{key} is given twice; once is enough")
        else:
            values[key] = _number(value, types[key], f"{name},{key}", problems)
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in values:
            problems.append(f"{name} needs {key}: say {name},{key}=<{types[key].__name__}>")
    if problems:
        raise StrategyError(problems)
    return values


def _number(text: str, kind: type, what: str, problems: list[str]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{what}={text}: {'a whole number' if kind is int else 'a number'} goes here")
    return value


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
