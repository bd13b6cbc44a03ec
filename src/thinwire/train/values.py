"""Parse command-line values: each function returns a value or raises `ArgumentTypeError`.

Nothing here loads torch, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from thinwire.text.words import near


def count(text: str) -> int:
    """Read an integer of at least 1; underscores may group its digits.

    Example:
        >>> count("1_000_000")
        1000000
    """
    return _integer(text, 1)


def whole(text: str) -> int:
    """Read an integer of at least 0."""
    return _integer(text, 0)


def interval(text: str) -> str:
    """Read `auto`, or an integer of at least 0."""
    return text if text == "auto" else str(_integer(text, 0))


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def switch(text: str) -> bool:
    """Read `true` or `false`, as TOML writes it."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text == "true"


def hosts(text: str) -> str:
    """Read host names with commas between them."""
    from thinwire.data.remote.leads import host_names

    try:
        return ",".join(host_names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def one_of(*words: str) -> Callable[[str], str]:
    """Make a parser that accepts one of some words."""
    choices = ", ".join(words[:-1]) + f" or {words[-1]}"

    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(
                f"expected {choices}, got {text!r}{near(text, words).rstrip('.')}"
            )
        return text

    return parse


def _integer(text: str, least: int) -> int:
    digits = text.replace("_", "")
    if not (digits.isascii() and digits.isdecimal()) or not least <= int(digits) < 1 << 63:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
    return int(digits)


def _number(text: str) -> float:
    """Return the number, or NaN where the text is none: no range accepts NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
