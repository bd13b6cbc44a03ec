"""Identify a strategy or a component by a hash of its settings, across versions of Thinwire.

A fingerprint covers the settings that differ from their *first released* defaults:
    1. a setting that a later version adds, with the old behaviour as its default, changes nothing
    2. a default that a later version changes still counts as the value that it was at first, once
       its field says so: `field(default=new, metadata=first_released(old))`
Settings are compared by value, so `decay=1` and `decay=1.0` of a float setting are the same.
`tests/frozen/defaults.json` holds the first released default of every setting.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any

from thinwire.core.component import NONE
from thinwire.errors import CheckpointError
from thinwire.version import __version__

VERSION = 1
"""The format of the fingerprints that this version of Thinwire writes and reads."""
_HEX_DIGITS = 32
_FIRST = "first released default"


def first_released(default: Any) -> dict[str, Any]:
    """Return the metadata of a field whose default was another one when it was first released."""
    return {_FIRST: default}


def fingerprint(value: Any) -> str:
    """Hash the settings of a strategy or a component.

    Args:
        value: a `Strategy`, or a component such as `topk(0.01)`.

    Returns:
        The format version and 32 hexadecimal digits, as in "1:0123…".

    Example:
        >>> from thinwire.what import feedback, topk
        >>> fingerprint(feedback(topk(0.01), decay=1)) == fingerprint(feedback(topk(0.01)))
        True
        >>> fingerprint(topk(1)) == fingerprint(topk(1.0))  # one value, or all of them
        False
    """
    text = json.dumps(settings(value), sort_keys=True, allow_nan=False)
    return f"{VERSION}:{hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]}"


def settings(value: Any) -> dict[str, Any]:
    """Return what a fingerprint covers: the name, and the settings that differ from their first
    released defaults.

    It is the plain table that TOML holds: `None` is "none", a tuple is a list. Fields that are not
    printed (`repr=False`) are no settings.

    Example:
        >>> from thinwire.what import topk
        >>> settings(topk(64, per=4096)), settings(topk(64))
        ({'use': 'topk', 'k': 64, 'per': 4096}, {'use': 'topk', 'k': 64})
    """
    hints = typing.get_type_hints(type(value))
    table: dict[str, Any] = {"use": type(value).__name__}
    for field in dataclasses.fields(value):
        if not field.repr:
            continue
        now, default = getattr(value, field.name), first_default(field)
        plain = as_plain(now, hints[field.name])
        # JSON tells 1 from 1.0 and from true, which are equal to Python
        if default is dataclasses.MISSING or json.dumps(plain) != json.dumps(
            as_plain(default, hints[field.name])
        ):
            table[field.name] = plain
    return table


def first_default(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default in the version that brought it, or `dataclasses.MISSING`."""
    if _FIRST in field.metadata:
        return field.metadata[_FIRST]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def must_be_known(print_: Any, where: str, version: str) -> None:
    """Raise unless this version of Thinwire can compare a saved fingerprint with its own.

    Args:
        print_: what was saved.
        where: what holds it, to begin the message with.
        version: the version of Thinwire that wrote it.

    Raises:
        CheckpointError: it has another format, or is none.
    """
    format_ = print_.partition(":")[0] if isinstance(print_, str) else ""
    if format_ != str(VERSION):
        raise CheckpointError(
            f"{where} holds a fingerprint of format {format_[:20]!r}; "
            f"thinwire {__version__} reads format {VERSION}. It was saved by thinwire {version}: "
            "read it with that version"
        )


def as_plain(value: Any, hint: Any) -> Any:
    """Return a setting as a table holds it; an integer of a float setting is a float there."""
    if dataclasses.is_dataclass(value):
        return settings(value)
    if isinstance(value, tuple):
        return [
            as_plain(each, own)
            for each, own in zip(value, _hints_of_items(hint, len(value)), strict=True)
        ]
    if value is None:
        return NONE
    if type(value) is int and float in _options(hint) and int not in _options(hint):
        return float(value)
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _hints_of_items(hint: Any, count: int) -> list[Any]:
    """Return the annotation of each item of a tuple; `None` where it names none."""
    for option in _options(hint):
        items = typing.get_args(option)
        if typing.get_origin(option) is tuple and items[-1] is Ellipsis:
            return [items[0]] * count
        if typing.get_origin(option) is tuple and len(items) == count:
            return list(items)
    return [None] * count
