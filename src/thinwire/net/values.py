"""Read single values of a network's TOML file; each raises a `ValueError` that says what it
expected."""

from __future__ import annotations

from typing import Any

from thinwire.net import units
from thinwire.net.units import fraction_text, rate_text
from thinwire.net.units import seconds_text as time_text

__all__ = [
    "fraction",
    "fraction_text",
    "half_time",
    "hosts",
    "integer",
    "names",
    "number",
    "rate",
    "rate_text",
    "text",
    "texts",
    "time",
    "time_text",
    "two_names",
]

MOST_HOSTS = 1 << 16


def text(value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r}")
    return value


def integer(value: Any) -> int:
    """Return an integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected an integer, got {value!r}")
    return value


def number(value: Any) -> float:
    """Return a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def rate(value: Any) -> float:
    """Return bits per second of a text such as "100mbit"."""
    return units.bits_per_s(_with_unit(value))


def time(value: Any) -> float:
    """Return the seconds of a text such as "50ms"."""
    return units.seconds(_with_unit(value))


def half_time(value: Any) -> float:
    """Return half the seconds of a text: the way there, of the way there and back."""
    return units.seconds(_with_unit(value)) / 2


def fraction(value: Any) -> float:
    """Return the fraction of a text such as "0.1%"."""
    return units.fraction(_with_unit(value))


def names(value: Any) -> tuple[str, ...]:
    """Return a list of names."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"expected a list of names, got {value!r}")
    return tuple(value)


def two_names(value: Any) -> tuple[str, ...]:
    """Return a list of two names."""
    if len(names(value)) != 2:
        raise ValueError(f"expected two names, got {value!r}")
    return tuple(value)


def hosts(value: Any) -> tuple[str, ...]:
    """Return the names of hosts: a list of them, or host0, host1 … for a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value > MOST_HOSTS:
            raise ValueError(f"{value} hosts: at most {MOST_HOSTS:,}")
        return tuple(f"host{i}" for i in range(value))
    return names(value)


def texts(value: Any) -> dict[str, str]:
    """Return a table of texts and integers, as texts."""
    if not isinstance(value, dict) or not all(
        isinstance(each, str | int) for each in value.values()
    ):
        raise ValueError(f"expected a table of settings, got {value!r}")
    return {key: str(each) for key, each in value.items()}


def _with_unit(value: Any) -> str:
    """Return a text; the integer 0 needs no unit."""
    return "0" if isinstance(value, int) and value == 0 else text(value)
