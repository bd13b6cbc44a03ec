"""Read and write rates, times and fractions as `tc` does: `100mbit`, `50ms`, `0.1%`."""

from __future__ import annotations

import re

RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*")


def bits_per_s(text: str) -> float:
    """Read a rate in bits per second.

    Raises:
        ValueError: it is no rate, or below 8 kbit.

    Example:
        >>> bits_per_s("100mbit"), bits_per_s("2.5 Gbit")
        (100000000.0, 2500000000.0)
        >>> bits_per_s("100")
        Traceback (most recent call last):
        ...
        ValueError: expected a rate such as 100mbit (bit, kbit, mbit, gbit), got '100'
    """
    value = float(round(_parse(text, RATES, "rate such as 100mbit")))
    if value < 8e3:
        raise ValueError(
            f"{text!r} is below 8kbit, a packet in a second and a half: nothing could be trained "
            "over it"
        )
    return value


def seconds(text: str) -> float:
    """Read a time in seconds.

    Raises:
        ValueError: it is no time.

    Example:
        >>> seconds("50ms"), seconds("0s")
        (0.05, 0.0)
    """
    return 0.0 if text.strip() == "0" else round(_parse(text, TIMES, "time such as 50ms"), 9)


def fraction(text: str) -> float:
    """Read a fraction from 0 to 1, written in per cent.

    Raises:
        ValueError: it is no fraction, or more than 100 %.

    Example:
        >>> fraction("0.1%"), fraction("100%")
        (0.001, 1.0)
        >>> fraction("1")
        Traceback (most recent call last):
        ...
        ValueError: expected a fraction such as 0.1%, got '1'
    """
    if text.strip() == "0":
        return 0.0
    value = _parse(text, {"%": 0.01}, "fraction such as 0.1%")
    if value > 1:
        raise ValueError(f"{text!r} is more than 100%")
    return value


def rate_text(bits: float) -> str:
    """Write bits per second as `bits_per_s` reads them.

    Example:
        >>> rate_text(1e8), rate_text(2.5e9)
        ('100mbit', '2.5gbit')
    """
    unit = next(
        unit for unit in ("gbit", "mbit", "kbit", "bit") if bits >= RATES[unit] or unit == "bit"
    )
    return f"{bits / RATES[unit]:.12g}{unit}"


def seconds_text(value: float) -> str:
    """Write seconds as `seconds` reads them.

    Example:
        >>> seconds_text(0.05), seconds_text(30.0), seconds_text(0.0)
        ('50ms', '30s', '0s')
    """
    unit = "s" if value >= 1 or value == 0 else "ms" if value >= 1e-3 else "us"
    return f"{value / TIMES[unit]:.12g}{unit}"


def fraction_text(value: float) -> str:
    """Write a fraction as `fraction` reads it.

    Example:
        >>> fraction_text(0.001)
        '0.1%'
    """
    return f"{value * 100:.12g}%"


def _parse(text: str, units: dict[str, float], what: str) -> float:
    match = _NUMBER.fullmatch(text.lower())
    if match is None or match[2] not in units:
        listed = "" if "%" in units else f" ({', '.join(units)})"
        raise ValueError(f"expected a {what}{listed}, got {text!r}")
    return float(match[1]) * units[match[2]]
