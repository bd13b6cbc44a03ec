"""How a command speaks: results on standard output, progress on standard error, failures in one line and an exit code.

Every rank of a distributed command runs the same code; only one of them says what all of them know.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

PROGRAM = "thinwire"


class Parser(argparse.ArgumentParser):
    """Flags that are refused in one line, once: every rank reads the same flags and ends alike, and rank 0 says why."""

    def print_help(self, file: Any = None) -> None:
        if rank() == 0:
            super().print_help(file)

    as_json = False
    """Whether refusals are told on standard output as well, as an object."""

    def error(self, message: str) -> NoReturn:
        Say(self.prog, self.as_json).failure(f"{message}. See {self.prog} --help")
        raise SystemExit(2)


class Say:
    """What a command tells as it goes (`note`) and what comes of it (`result`)."""

    def __init__(self, program: str, as_json: bool) -> None:
        self.program, self.as_json = program, as_json

    def note(self, text: str, speaker: int = 0) -> None:
        """A line of progress, on rank `speaker`'s standard error."""
        if rank() == speaker:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def result(self, told: Mapping[str, Any], text: str) -> None:
        """The one object under `--json`, else the text, on standard output."""
        if rank() == 0:
            sys.stdout.write((json.dumps(told, allow_nan=False) if self.as_json else text.rstrip("\n")) + "\n")
            sys.stdout.flush()

    def failure(self, message: str, speaker: int = 0) -> None:
        """Why it ends: a line on standard error, and under `--json` an object with `error` on standard output."""
        complain(self.program, message, speaker)
        if self.as_json and rank() == speaker:
            sys.stdout.write(json.dumps({"error": one_line(message)}) + "\n")
            sys.stdout.flush()


def rank() -> int:
    """This process's number, as a launcher gave it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def complain(program: str, message: str, speaker: int = 0) -> None:
    """One line on rank `speaker`'s standard error, whatever the message was."""
    if rank() == speaker:
        sys.stderr.write(f"{program}: {one_line(message)}\n")
        sys.stderr.flush()


def one_line(message: str) -> str:
    """A message of several lines in one.

    Example:
        >>> one_line("two reasons\\n  this, and that")
        'two reasons; this, and that'
    """
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())
