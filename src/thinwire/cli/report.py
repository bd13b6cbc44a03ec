"""`thinwire report`: write training runs, or a bench, as one page that works offline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import ConfigError
from thinwire.text.output import CommandOutput

if TYPE_CHECKING:
    from thinwire.bench.report import FinishedRun

ABOUT = """\
Write one self-contained page: loss against seconds and bytes, times, and a table to sort.

    thinwire report runs/dense runs/thin   training runs; the others are compared with the first
    thinwire report runs/bench             the records of a bench (`thinwire bench` does it itself)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="output folders of thinwire train, or one of thinwire bench",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default report.html"
    )


def finished(places: Sequence[Path]) -> tuple[list[FinishedRun], dict[str, tuple[Any, ...]]]:
    """Read finished runs, and what is not alike in them although it should be.

    Args:
        places: their folders, or the run.json in them.

    Raises:
        ConfigError: one is given twice, or cannot be read.
    """
    from thinwire.bench.report import FinishedRun
    from thinwire.train.finished import differences, read
    from thinwire.train.plot import sent_megabytes

    for number, path in enumerate(places):
        if path.resolve() in [each.resolve() for each in places[:number]]:
            raise ConfigError(f"{str(path)!r} is given twice; once is enough")
    runs = [read(path) for path in places]
    together = zip(places, runs, strict=True)
    return [FinishedRun(path, run, sent_megabytes(run)) for path, run in together], differences(
        runs
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Write the page."""
    from thinwire.bench.records import RECORDS, for_page, read
    from thinwire.bench.report import bench_page, runs_page, summary, write
    from thinwire.cli.bench import as_table, left_out

    # A bench's folder alone, or any number of training runs.
    benches = [run for run in options.runs if (run / RECORDS).exists()]
    if benches and len(options.runs) > 1:
        raise ConfigError(f"{benches[0]} is a bench's folder: give it alone")
    if not benches:
        write(runs_page(*finished(options.runs)), options.out)
        output.result({"report": str(options.out)}, str(options.out))
        return 0
    measured = read(benches[0] / RECORDS)
    records = for_page(measured)
    write(bench_page(records), options.out)
    rows = summary(records)
    output.result(
        {"report": str(options.out), "rows": rows},
        f"{as_table(rows)}\n\n{left_out(measured)}{options.out}",
    )
    return 0
