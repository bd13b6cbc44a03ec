"""Run `thinwire compare`: show finished runs side by side, as a table and as a picture.

It reads the `run.json` of each run and compares the others with the first. Where runs differ in
more than their strategy, it prints a warning, because then the figures compare more than that.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import ConfigError
from thinwire.text.output import CommandOutput
from thinwire.train.finished import differences, read

if TYPE_CHECKING:
    from rich.table import Table

ABOUT = """\
Compare finished runs: a table, and a picture of their loss against steps and against bytes.

    thinwire compare runs/dense runs/diloco                 the others are compared with the first
    thinwire compare runs/* --out figures/loss.svg
"""
COLUMN = 16  # the least width of a run's column
LABELS = 18
WIDEST = 120


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire compare`."""
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a run's folder, or its run.json"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("compare.svg"),
        help="path of the picture; default compare.svg",
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Read the runs, draw them, and print the table."""
    folders = [Path(folder) for folder in options.folders]
    # 1. Refuse what cannot be, before torch is loaded.
    if options.out.suffix != ".svg":
        raise ConfigError(
            f"--out {options.out}: the picture is an SVG; give a name that ends in .svg"
        )
    if not options.out.resolve().parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: the folder {str(options.out.parent)!r} does not exist; make it "
            "first"
        )
    if twice := [
        str(folder)
        for index, folder in enumerate(folders)
        if folder.resolve() in [each.resolve() for each in folders[:index]]
    ]:
        raise ConfigError(f"{twice[0]!r} is given twice; once is enough")
    runs = [read(folder) for folder in folders]
    # 2. Warn of differences beyond the strategy.
    names = _names(folders, runs)
    differ = differences(runs)
    for what, values in differ.items():
        output.note(
            f"warning: the runs differ in {what} ({', '.join(map(str, values))}): the strategy is "
            "not all that is compared here"
        )
    # It loads torch, to play the schedules: after all that can be refused without it.
    from thinwire.train.plot import (
        draw,
    )

    picture = draw(runs, names, options.out)
    rows = [_figures(folder, each, runs[0]) for folder, each in zip(folders, runs, strict=True)]
    report = {
        "runs": rows,
        "differ": {what: list(each) for what, each in differ.items()},
        "picture": str(picture),
    }
    output.result(report, _text(rows, names, picture))
    return 0


def _names(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return names for the runs: strategies if they differ, else folders."""
    for names in (
        [str(run["config"]["strategy"]) for run in runs],
        [(f.parent if f.suffix == ".json" else f).resolve().name for f in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _figures(folder: Path, run: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    result, world = run["result"], run["world"]
    nats = result["validation_nats_per_token"]
    return {
        "folder": str(folder),
        "model": run["config"]["model"],
        "strategy": run["config"]["strategy"],
        "world": world,
        "steps": result["steps"],
        "tokens": result["tokens"],
        "seed": run["config"]["seed"],
        "validation_nats_per_token": nats,
        "gap": nats / first["result"]["validation_nats_per_token"] - 1,
        "validation_bits_per_byte": result["validation_bits_per_byte"],
        "sent_bytes_per_rank": sum(result["sent_bytes"]) / world,
        "around_bytes_per_rank": sum(result["around_bytes"]) / world,
        "ratio": result["ratio"],
        "ratio_all": result["ratio_all"],
        "tokens_per_s": result["tokens_per_s"],
        "train_s": result["train_s"],
        "time_shares": result["time_shares"],
    }


def _text(rows: Sequence[dict[str, Any]], names: Sequence[str], picture: Path) -> str:
    """Return the table, split into parts that fit the terminal."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConfigError(
            f"the table needs rich ({error}): pip install 'thinwire[train]', or ask for --json"
        ) from error
    from thinwire.train.show import written

    # As many runs a table as fit the terminal; the others follow below.
    wide = min(Console().width, WIDEST)
    console = Console(file=io.StringIO(), highlight=False, width=wide)
    fit = max(1, (wide - LABELS) // (COLUMN + 2))
    for begin in range(0, len(rows), fit):
        some = slice(begin, begin + fit)
        console.print(_table(rows[some], names[some], (wide - LABELS) // len(rows[some]) - 2))
    console.print(f"the picture: {picture}", markup=False, soft_wrap=True)
    return written(console)


def folded(words: str, width: int) -> str:
    """Break words into lines of at most that width, after a comma, a slash or a dash if possible.

    Example:
        >>> folded("diloco,period=20,lr=0.5", 16)
        'diloco,\\nperiod=20,lr=0.5'
    """
    lines = [""]
    for piece in re.findall(r"[^,/-]*[,/-]|[^,/-]+", words):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str], width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from thinwire.train.show import clock, size

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    for name in names:
        table.add_column(
            Text(folded(name, width)), justify="right", overflow="fold", min_width=COLUMN
        )

    def row(label: str, cells: Sequence[str]) -> None:
        table.add_row(label, *map(Text, cells))

    def times(ratio: float | None) -> str:
        return "–" if ratio is None else f"{ratio:,.1f}x"

    row("folder", [folded(each["folder"], width) for each in rows])
    if list(names) != [each["strategy"] for each in rows]:
        row("strategy", [folded(each["strategy"], width) for each in rows])
    row("validation loss", [f"{each['validation_nats_per_token']:.4f}" for each in rows])
    row("  to the first", [f"{each['gap']:+.2%}" for each in rows])
    row(
        "bits a byte",
        [
            "–"
            if each["validation_bits_per_byte"] is None
            else f"{each['validation_bits_per_byte']:.4f}"
            for each in rows
        ],
    )
    row("sent by a rank", [size(each["sent_bytes_per_rank"]) for each in rows])
    row("  around it", [size(each["around_bytes_per_rank"]) for each in rows])
    row("fewer than dense", [times(each["ratio"]) for each in rows])
    row("  with all around", [times(each["ratio_all"]) for each in rows])
    row("tokens/s", [f"{each['tokens_per_s']:,.0f}" for each in rows])
    row("time", [clock(each["train_s"]) for each in rows])
    for label, key in (
        ("  compute", "compute"),
        ("  wait for wire", "exposed"),
        ("  wait for input", "input"),
    ):
        row(label, [f"{each['time_shares'][key]:.1%}" for each in rows])
    for label, key in (("beside: encoding", "encode"), ("beside: wire", "wire")):
        row(label, [f"{each['time_shares'][key]:.1%}" for each in rows])
    return table
