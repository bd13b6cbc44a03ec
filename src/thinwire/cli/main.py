"""`thinwire COMMAND …`: find the command, load only its file, run it.

Exit codes: 0 done; 1 it failed on the way; 2 what was asked cannot be; 128 + n ended by signal n.
Whatever fails is said in one line.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from thinwire.say import PROGRAM, Parser, Say
from thinwire.version import __version__

COMMANDS = {
    "train": "train a language model, on as many ranks as there are",
    "generate": "let a trained model go on with a text, or fill its gaps",
    "compare": "finished runs side by side: a table and a picture",
    "recipes": "the named strategies, with what they send",
    "data": "build a larger text to train on, or pack one for a thin wire",
    "lab": "emulated hosts on this machine, joined by thin wires",
    "bench": "strategies and rivals on the same model, text and links",
    "report": "runs, or a bench, as one page",
    "codecs": "what codecs make of a tensor: bytes, error, speed",
    "doctor": "what is installed, what works here, and what to do about the rest",
}
LISTED = "\n".join(f"    {name:<10}{told}" for name, told in COMMANDS.items())
ABOUT = f"""\
Training large language models where the wire between the machines is thin.

commands:
{LISTED}

to begin with:
    thinwire doctor                                          is all that is needed here?
    thinwire train --workers 2                               a small Llama on bundled English, two ranks on this machine
    thinwire train --workers 2 --strategy powersgd,rank=4    another strategy; `thinwire recipes` lists them
    thinwire compare runs/*                                  what the strategy has changed
    thinwire train --nodes 2 --node-rank 0 --master HOST:PORT    the first of two machines
"""
MORE = (
    f"`{PROGRAM} COMMAND --help` tells a command's flags. With --json a command prints one JSON "
    "object."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `thinwire`; this process's own without them.

    Returns:
        The exit code.

    Raises:
        SystemExit: after `--help` or `--version`, or with 2 for flags that cannot be.
    """
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
    asked = parser.parse_args(arguments)
    if asked.command not in COMMANDS:
        parser.error(_unknown(asked.command))
    module = importlib.import_module(f"thinwire.cli.{asked.command}")
    name = f"{PROGRAM} {asked.command}"
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
    own.tell_as_json("--json" in asked.rest)
    options = own.parse_args(asked.rest)
    return guarded(module, options, Say(name, options.as_json))


def guarded(module: Any, options: argparse.Namespace, say: Say) -> int:
    """Run a command; what Thinwire refuses becomes a line and exit code 2, an interrupt 130."""
    try:
        return int(module.run(options, say))
    except BrokenPipeError:  # `thinwire recipes | head`
        return 1
    except KeyboardInterrupt:
        say.failure("interrupted")
        return 130
    except Exception as error:
        from thinwire.errors import ThinwireError  # no torch behind it, yet not needed for --help

        if not isinstance(error, ThinwireError):
            raise
        say.failure(str(error))
        return 2


def _unknown(command: str | None) -> str:
    from thinwire.words import near  # not needed for --help

    there = f"There are: {', '.join(COMMANDS)}"
    if command is None:
        return f"expected a command. {there}"
    return f"no command is called {command!r}{near(command, COMMANDS)} {there}"
