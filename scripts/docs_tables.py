"""Make the navigation and the table of codecs from their classes and pages; a hook of mkdocs.

`mkdocs build` runs it (see `hooks` in mkdocs.yml); `python scripts/docs_tables.py` prints the
table.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from thinwire import what
from thinwire.core import Codec, Part, Spec
from thinwire.strategy.reading import spelled

DOCS = Path(__file__).parents[1] / "docs"
MARKER = "<!-- the table of codecs -->"
HEAD = "| codec | does | for example | bits a value | adds unopened | unbiased |"
SIDE = 1024
SPEC = Spec((Part("w", (SIDE, SIDE), 0, "matrix"),), 0, SIDE * SIDE, torch.float32)


def codecs(package: str = "") -> list[type[Codec]]:
    """List the exported codecs, or those of one package of `thinwire.what`, by name."""
    exported = [getattr(what, name) for name in what.__all__]
    return [
        cls
        for cls in exported
        if not inspect.isabstract(cls)
        and cls.__module__.startswith(f"thinwire.what.{package}{'.' if package else ''}")
    ]


def row(cls: type[Codec]) -> str:
    """Write the row of a codec: its page's first sentence, and the traits of its first example."""
    name = cls.__name__
    codec: Codec = spelled("what", cls.examples[0])
    exact, most = codec.nbytes(SPEC), codec.max_nbytes(SPEC)
    bits = f"{'' if exact is not None else 'at most '}{8 * most / SPEC.numel:.4g}"
    traits = codec.traits
    cells = [
        f"[`{name}`](what/{name}.md)",
        first_sentence(name),
        f"`{cls.examples[0]}`",
        bits,
        "yes" if traits.summable else "no",
        "exact" if not traits.lossy else "yes" if traits.unbiased else "no",
    ]
    return f"| {' | '.join(cells)} |"


def first_sentence(name: str) -> str:
    """Return the first sentence of a codec's page, without its links."""
    text = (DOCS / "what" / f"{name}.md").read_text(encoding="utf-8")
    paragraph = re.split(r"\n\s*\n", text.split("\n", 1)[1].strip())[0].replace("\n", " ")
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", paragraph)
    return re.split(r"(?<=\.)\s", plain)[0].removesuffix(".").replace("|", "\\|")


def table() -> str:
    """Write the table of all exported codecs."""
    return "\n".join([HEAD, "|---|---|---|---|---|---|", *map(row, codecs())])


def filled(nav: Any) -> Any:
    """Return the navigation with each `what/<package>` replaced by that package's pages."""
    if isinstance(nav, list):
        return [filled(each) for each in nav]
    if isinstance(nav, dict):
        return {title: filled(value) for title, value in nav.items()}
    package = re.fullmatch(r"what/(\w+)", nav)
    if package is None:
        return nav
    return [{cls.__name__: f"what/{cls.__name__}.md"} for cls in codecs(package[1])]


def on_config(config: Any) -> Any:
    """Fill the navigation in, before mkdocs reads it."""
    config["nav"] = filled(config["nav"])
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of codecs in the place of its marker."""
    return markdown.replace(MARKER, table()) if MARKER in markdown else markdown


if __name__ == "__main__":
    print(table())
