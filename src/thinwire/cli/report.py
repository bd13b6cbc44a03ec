"""`thinwire report`: training runs, or a bench, as one page that works offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from thinwire.errors import ConfigError
from thinwire.say import Say

ABOUT = """\
One self-contained page: loss against seconds and bytes, where the time went, and a table to sort.

    thinwire report runs/dense runs/thin            training runs, the first is what the others are held against
    thinwire report runs/bench                      the records of a bench (`thinwire bench` writes the page itself)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `thinwire report`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="output folders of thinwire train, or one of thinwire bench")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default report.html")


def run(options: argparse.Namespace, say: Say) -> int:
    """Write the page."""
    from thinwire.bench.records import RECORDS, for_page, read
    from thinwire.bench.report import bench_page, runs_page, write

    benches = [run for run in options.runs if (run / RECORDS).exists()]
    if benches and len(options.runs) > 1:
        raise ConfigError(f"{benches[0]} is a bench's folder: give it alone")
    page = bench_page(for_page(read(benches[0] / RECORDS))) if benches else runs_page(options.runs)
    write(page, options.out)
    say.result({"report": str(options.out)}, str(options.out))
    return 0
