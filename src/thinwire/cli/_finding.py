"""What a check of `thinwire doctor` says, and how it reads what the kernel tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found: how it stands, with what, in words, and what to do."""

    level: Literal["ok", "note", "problem"]
    what: str
    told: str
    do: str = ""


def read(place: str) -> str | None:
    """What the kernel says there, or None where it says nothing."""
    try:
        return Path(place).read_text(encoding="utf-8").strip()
    except OSError:
        return None
