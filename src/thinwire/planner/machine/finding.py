"""Hold what a check of a machine finds, and read the kernel's files."""

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
        message: what the check found, in words.
        do: what to do about it; empty where there is nothing to do.
    """

    level: Literal["ok", "note", "problem"]
    what: str
    message: str
    do: str = ""

    def record(self) -> dict[str, str]:
        """Return the finding as `thinwire doctor --json` prints it; its keys stay as they are."""
        return {"level": self.level, "what": self.what, "told": self.message, "do": self.do}


def read(path: str) -> str | None:
    """Return the text of a file of the kernel's, or `None` where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
