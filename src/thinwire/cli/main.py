"""`thinwire COMMAND …`: find the command, load only its file, run it.

Exit codes: 0 success; 1 failure; 2 invalid request; 128 + n ended by signal n. Every failure is
printed as one line.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from thinwire.text.output import PROGRAM, CommandOutput, Parser
from thinwire.version import __version__

COMMANDS = {
    "train": "train a language model on one or more ranks",
    "generate": "continue a text with a trained model, or fill its gaps",
    "compare": "compare finished runs in a table and a picture",
    "recipes": "list the named strategies and what they send",
    "data": "build a larger training text, or pack one for a slow network",
    "lab": "emulate hosts and slow networks on this machine",
    "bench": "measure strategies and rivals on the same model, text and links",
    "report": "write runs, or a bench, as one page",
    "codecs": "measure bytes, error and speed of codecs on a tensor",
    "doctor": "check what is installed, what works, and how to fix the rest",
}
LISTED = "\n".join(f"    {name:<10}{about}" for name, about in COMMANDS.items())
ABOUT = f"""\
Train large language models over slow networks.

commands:
{LISTED}

first steps:
    thinwire doctor                                         check this machine
    thinwire train --workers 2                              train a small Llama with two ranks
    thinwire train --workers 2 --strategy powersgd,rank=4   another strategy
    thinwire compare runs/*                                 compare the runs
    thinwire train --nodes 2 --node-rank 0 --master HOST:PORT
                                                            start the first of two machines
"""
MORE = (
    f"`{PROGRAM} COMMAND --help` lists the flags of a command. With --json a command prints one "
    "JSON object."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: the words after `thinwire`; this process's own without them.

    Returns:
        The exit code.

    Raises:
        SystemExit: after `--help` or `--version`, or with 2 for flags that cannot be.
    """
    # 1. The command's name; all after it is the command's own. --help works without loading any.
    parser = Parser(
        PROGRAM,
        usage=f"{PROGRAM} COMMAND [flag …]",
        description=ABOUT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"thinwire {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command_line = parser.parse_args(arguments)
    if command_line.command not in COMMANDS:
        parser.error(_unknown(command_line.command))
    # 2. Load that command alone, and parse its flags.
    module = importlib.import_module(f"thinwire.cli.{command_line.command}")
    name = f"{PROGRAM} {command_line.command}"
    own = Parser(
        name,
        description=module.ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.add_argument(
        "--json",
        action="store_true",
        dest="as_json",
        help="one JSON object on standard output; progress on standard error",
    )
    module.arguments(own)
    own.set_as_json("--json" in command_line.rest)
    options = own.parse_args(command_line.rest)
    return guarded(module, options, CommandOutput(name, options.as_json))


def guarded(module: Any, options: argparse.Namespace, output: CommandOutput) -> int:
    """Run a command; an error of Thinwire becomes one line and exit code 2, an interrupt 130."""
    try:
        return int(module.run(options, output))
    except BrokenPipeError:  # `thinwire recipes | head`
        return 1
    except KeyboardInterrupt:
        output.failure("interrupted")
        return 130
    except Exception as error:
        from thinwire.errors import ThinwireError  # no torch behind it, yet not needed for --help

        if not isinstance(error, ThinwireError):
            raise
        output.failure(str(error))
        return 2


def _unknown(command: str | None) -> str:
    from thinwire.text.words import near  # not needed for --help

    there = f"There are: {', '.join(COMMANDS)}"
    if command is None:
        return f"expected a command. {there}"
    return f"no command is called {command!r}{near(command, COMMANDS)} {there}"
