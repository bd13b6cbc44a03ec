"""Rates, times, shares and sizes as `tc` writes them: `100mbit`, `50ms`, `0.1%`, `256kb`."""

from __future__ import annotations

import math
import re

RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
SIZES = {"b": 1.0, "kb": 1024.0, "mb": 1024.0**2}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*")


def rate(text: str) -> float:
    """Bits per second.

    Example:
        >>> rate("100mbit"), rate("2.5 Gbit")
        (100000000.0, 2500000000.0)
        >>> rate("100")
        Traceback (most recent call last):
        ...
        ValueError: '100' is no rate such as 100mbit (bit, kbit, mbit, gbit)
    """
    value = float(round(_parse(text, RATES, "rate such as 100mbit")))
    if value < 8e3:
        raise ValueError(
            f"{text!r} is below 8kbit, a packet in a second and a half: nothing could be trained "
            "over it"
        )
    return value


def seconds(text: str) -> float:
    """Seconds.

    Example:
        >>> seconds("50ms"), seconds("0s")
        (0.05, 0.0)
    """
    return 0.0 if text.strip() == "0" else round(_parse(text, TIMES, "time such as 50ms"), 9)


def share(text: str) -> float:
    """A share from 0 to 1, said in per cent.

    Example:
        >>> share("0.1%"), share("100%")
        (0.001, 1.0)
        >>> share("1")
        Traceback (most recent call last):
        ...
        ValueError: '1' is no share such as 0.1%
    """
    if text.strip() == "0":
        return 0.0
    value = _parse(text, {"%": 0.01}, "share such as 0.1%")
    if value > 1:
        raise ValueError(f"{text!r} is more than everything")
    return value


def size(text: str) -> int:
    """Bytes.

    Example:
        >>> size("256kb")
        262144
    """
    return math.ceil(_parse(text, SIZES, "size such as 256kb"))


def rate_words(bits_per_s: float) -> str:
    """A rate as `rate` reads it.

    Example:
        >>> rate_words(1e8), rate_words(2.5e9)
        ('100mbit', '2.5gbit')
    """
    unit = next(
        unit
        for unit in ("gbit", "mbit", "kbit", "bit")
        if bits_per_s >= RATES[unit] or unit == "bit"
    )
    return f"{bits_per_s / RATES[unit]:.12g}{unit}"


def seconds_words(value: float) -> str:
    """A time as `seconds` reads it.

    Example:
        >>> seconds_words(0.05), seconds_words(30.0), seconds_words(0.0)
        ('50ms', '30s', '0s')
    """
    unit = "s" if value >= 1 or value == 0 else "ms" if value >= 1e-3 else "us"
    return f"{value / TIMES[unit]:.12g}{unit}"


def share_words(value: float) -> str:
    """A share as `share` reads it.

    Example:
        >>> share_words(0.001)
        '0.1%'
    """
    return f"{value * 100:.12g}%"


def _parse(text: str, units: dict[str, float], what: str) -> float:
    found = _NUMBER.fullmatch(text.lower())
    if found is None or found[2] not in units:
        listed = "" if "%" in units else f" ({', '.join(units)})"
        raise ValueError(f"{text!r} is no {what}{listed}")
    return float(found[1]) * units[found[2]]
