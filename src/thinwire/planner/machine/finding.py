"""Hold what a check of a machine finds, and read the files in which the kernel says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Hold what a check found.

    Args:
        level: how it stands.
        what: what was checked.
        told: what was found, in words.
        do: what to do about it; empty where there is nothing to do.
    """

    level: Literal["ok", "note", "problem"]
    what: str
    told: str
    do: str = ""


def read(place: str) -> str | None:
    """Return the text of a file of the kernel's, or `None` where it cannot be read."""
    try:
        return Path(place).read_text(encoding="utf-8").strip()
    except OSError:
        return None
