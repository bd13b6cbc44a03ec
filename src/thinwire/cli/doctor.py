"""`thinwire doctor`: what is here, what works, and what to do about the rest.

Every check looks at this machine and says what it found: `ok`, a `note` (it works, and could be
better or matters only elsewhere), or a `problem` (something that Thinwire needs does not work).
Checks look; they change nothing, and one that fails to look says so. What a busy machine was too
slow for is a note, as nothing is known of it.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING

from thinwire.text.output import CommandOutput

if TYPE_CHECKING:
    from thinwire.planner.machine.finding import Finding

ABOUT = """\
What is installed, what works here, and what to do about the rest.

    thinwire doctor           a line a check: ok, note or problem; exit code 1 if there is a problem
    thinwire doctor --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """`thinwire doctor` has no flags of its own."""


def run(options: argparse.Namespace, output: CommandOutput) -> int:  # noqa: ARG001  (every command takes them)
    """Run every check; return 1 if one finds a problem."""
    from thinwire.planner.machine import host

    findings = [finding for check in host.CHECKS for finding in host.looked(check)]
    counts = {
        level: sum(each.level == level for each in findings) for level in ("ok", "note", "problem")
    }
    output.result(
        {**counts, "checks": [each.record() for each in findings]}, _text(findings, counts)
    )
    return 1 if counts["problem"] else 0


def _text(findings: list[Finding], counts: dict[str, int]) -> str:
    # Three columns: level, what, and the message, wrapped under itself; advice follows an arrow.
    wide = min(shutil.get_terminal_size().columns, 120)
    first = max(len(each.what) for each in findings)
    indent = " " * (first + 11)
    lines = []
    for each in findings:
        head = f"{each.level:<7}  {each.what:<{first}}  "
        lines += textwrap.wrap(
            each.message,
            wide,
            initial_indent=head,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        lines += textwrap.wrap(
            each.do,
            wide,
            initial_indent=indent + "→ ",
            subsequent_indent=indent + "  ",
            break_on_hyphens=False,
        )
    problems = (
        "no problems"
        if not counts["problem"]
        else f"{counts['problem']} problem{'s' * (counts['problem'] > 1)}"
    )
    return "\n".join(
        [*lines, "", f"{problems}, {counts['note']} note{'s' * (counts['note'] != 1)}"]
    )
