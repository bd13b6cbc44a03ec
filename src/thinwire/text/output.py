"""Print what a command has to show: results on standard output, progress on standard error,
failures in one line and an exit code.

Every rank of a distributed command runs the same code; only one of them prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from thinwire import env

PROGRAM = "thinwire"


class Parser(argparse.ArgumentParser):
    """Parse flags, and refuse wrong ones in one line: every rank reads the same flags and ends
    alike, and rank 0 prints why.

    The line has every problem at once. For a flag that does not exist it names similar ones.
    """

    as_json = False
    """Whether refusals are printed on standard output as well, as an object."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._words: list[str] = []
        self._problems: list[str] = []

    def print_help(self, file: Any = None) -> None:
        if rank() == 0:
            super().print_help(file)

    def set_as_json(self, as_json: bool) -> None:
        """Set `as_json` here and in the parsers of all actions."""
        self.as_json = as_json
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each in action.choices.values():
                    each.set_as_json(as_json)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words, self._problems = list(sys.argv[1:] if args is None else args), []
        options, unknown = super().parse_known_args(args, namespace)
        if unknown and not self._unknown_flags():
            setting = "; settings follow a comma, without a space" if "=" in unknown[0] else ""
            self.error(f"{unknown[0]!r} is one word too many{setting}")
        if self._problems or unknown:
            self.error("")
        return options, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Return the values of a flag; note a wrong value and go on with the next flag."""
        if action.nargs == argparse.PARSER:  # a command: nothing can be read without it
            return super()._get_values(action, arg_strings)
        if (
            not action.option_strings and self._unknown_flags()
        ):  # it may be the value of such a flag
            return None
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as error:
            self._problems.append(str(error))
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        from thinwire.text.words import near  # not needed for --help

        if action.choices is not None and value not in action.choices:
            there = list(map(str, action.choices))
            raise argparse.ArgumentError(
                action,
                f"{value!r} is none of {', '.join(there)}{near(str(value), there).rstrip('.')}",
            )

    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "it takes no value, but was given")
        problems = [*self._problems, *self._unknown_flags(), *([message] if message else [])]
        text = "\n".join(problems)
        CommandOutput(self.prog, self.as_json).failure(
            f"{text}{'' if text.endswith('?') else '.'} See {self.prog} --help"
        )
        raise SystemExit(2)

    def _unknown_flags(self) -> list[str]:
        """Return a sentence for each word that looks like a flag and is none."""
        from thinwire.text.words import near

        # What follows a command is the command's own; without one, all up to "--" is ours.
        if any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions):
            before = next(
                (at for at, word in enumerate(self._words) if not word.startswith("-")),
                len(self._words),
            )
        else:
            before = self._words.index("--") if "--" in self._words else len(self._words)
        long_flags = [option for option in self._option_string_actions if option.startswith("--")]
        flags = [
            word.partition("=")[0]
            for word in self._words[:before]
            if word.startswith("-") and word.strip("-")
        ]
        unknown = [
            name
            for name in dict.fromkeys(flags)
            if name not in self._option_string_actions and not _is_number(name)
        ]
        return [
            f"no flag is called {name}{near('--' + name.lstrip('-'), long_flags).rstrip('.')}"
            for name in unknown
        ]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class CommandOutput:
    """Print what a command does (`note`), its result (`result`) and why it fails (`failure`)."""

    def __init__(self, program: str, as_json: bool) -> None:
        self.program, self.as_json = program, as_json

    def note(self, text: str, by_rank: int = 0) -> None:
        """Print a line of progress on rank `by_rank`'s standard error."""
        if rank() == by_rank:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """Print one object under `--json`, else the text, on standard output."""
        if rank() == 0:
            sys.stdout.write(
                (json.dumps(values, allow_nan=False) if self.as_json else text.rstrip("\n")) + "\n"
            )
            sys.stdout.flush()

    def failure(self, message: str, by_rank: int = 0) -> None:
        """Print why it ends: a line on standard error, and under `--json` an object with `error` on
        standard output."""
        complain(self.program, message, by_rank)
        if self.as_json and rank() == by_rank:
            sys.stdout.write(json.dumps({"error": one_line(message)}) + "\n")
            sys.stdout.flush()


def rank() -> int:
    """Return this process's number, as a launcher gave it; 0 without one."""
    return env.rank()


def complain(program: str, message: str, by_rank: int = 0) -> None:
    """Print a message in one line on rank `by_rank`'s standard error."""
    if rank() == by_rank:
        sys.stderr.write(f"{program}: {one_line(message)}\n")
        sys.stderr.flush()


def one_line(message: str) -> str:
    """Return a message of several lines in one line.

    Example:
        >>> one_line("two reasons\\n  this, and that")
        'two reasons; this, and that'
    """
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())
