"""What the training command may be asked: flags, read before torch is loaded, so that `--help` is quick."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "python -m thinwire.train"
STRATEGY = "fedpaq,period=8"
ABOUT = """\
Train a small GPT on 6 MB of real English, on as many ranks as the launcher starts:

    torchrun --standalone --nproc-per-node=2 -m thinwire.train
    torchrun --standalone --nproc-per-node=2 -m thinwire.train --strategy topk_sgd,share=0.02
    torchrun --standalone --nproc-per-node=2 -m thinwire.train --strategy diloco,period=60
    python -m thinwire.train        (alone: sends nothing)
"""


@dataclass(frozen=True)
class Options:
    """The flags, each of the right type; whether the strategy makes sense is found out later."""

    strategy: str
    steps: int
    batch: int
    lr: float
    seed: int
    out: Path | None
    timeout_s: float


class Parser(argparse.ArgumentParser):
    """Every rank reads the same flags: all end alike, and rank 0 says why, in one line."""

    def print_help(self, file: Any = None) -> None:
        if rank() == 0:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        complain(f"{message}. See {PROGRAM} --help")
        raise SystemExit(2)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, or in the command line.

    Raises:
        SystemExit: 2 after a flag that is unknown or has a wrong value; 0 after `--help`.

    Example:
        >>> parse(["--steps", "8"]).steps
        8
    """
    parser = Parser(PROGRAM, description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    told = "a recipe of thinwire.recipes, with settings such as diloco,period=60; or the path of a .toml file (Strategy.to_toml)"
    parser.add_argument("--strategy", default=STRATEGY, metavar="RECIPE", help=f"{told}; default {STRATEGY}")
    told = "batches to a rank, rounded up to where the strategy lands; default %(default)s"
    parser.add_argument("--steps", type=_count, default=960, metavar="N", help=told)
    parser.add_argument("--batch", type=_count, default=8, metavar="N", help="rows of 128 bytes to a rank's batch; default %(default)s")
    parser.add_argument("--lr", type=_positive, default=3e-3, metavar="X", help="the peak of AdamW's learning rate; default %(default)s")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of weights, batches and every draw; default %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write run.json there: the configuration, the curve and the report")
    told = "the longest that one message may take, after which the ranks that are lost are named; default %(default)s"
    parser.add_argument("--timeout", dest="timeout_s", type=_positive, default=120.0, metavar="SECONDS", help=told)
    return Options(**vars(parser.parse_args(arguments)))


def rank() -> int:
    """This process's number, as the launcher gave it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def complain(message: str, speaker: int = 0) -> None:
    """One line on rank `speaker`'s standard error, whatever the message was."""
    if rank() == speaker:
        sys.stderr.write(f"thinwire.train: {'; '.join(message.splitlines())}\n")
        sys.stderr.flush()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
