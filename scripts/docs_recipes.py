"""Make the table of recipes from their functions; a hook of mkdocs.

`mkdocs build` runs it (see `hooks` in mkdocs.yml); `python scripts/docs_recipes.py` prints the
table.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from thinwire import Strategy, recipes
from thinwire.cli.recipes import short
from thinwire.core import Part, RankContext, Spec

MARKER = "<!-- the table of recipes -->"
HEAD = "| recipe | when × what × how × on | bits | source |"
REQUIRED = {  # settings without a default
    "two_level": {"node": 4},
    "post_local_sgd": {"start": 100},
    "onebit_adam": {"start": 100},
    "zero_one_adam": {"until": 1000},
    "for_link": {"gbits": 1.0},
}
SIDE = 1024
SPEC = Spec((Part("w", (SIDE, SIDE), 0, "matrix"),), 0, SIDE * SIDE, torch.float32)
RANK_0 = RankContext(rank=0, group=tuple(range(8)), step=0, seed=0)


def row(name: str) -> str:
    """Write the row of a recipe: its slots, what rank 0 sends, and its papers."""
    maker = recipes.names()[name]
    strategy: Strategy = maker(**REQUIRED.get(name, {}))
    slots = ", ".join(
        f"`{short(getattr(strategy, slot))}`" for slot in ("when", "what", "how", "on")
    )
    nbytes = strategy.how.sent_nbytes(strategy.what, SPEC, RANK_0)
    bits = "by data" if nbytes is None else f"{8 * nbytes / strategy.when.period / SPEC.numel:.3g}"
    papers = list(dict.fromkeys(re.findall(r"arXiv:[\d.]*\d", inspect.getdoc(maker) or "")))
    return f"| `{name}` | {slots} | {bits} | {', '.join(papers) or '–'} |"


def table() -> str:
    """Write the table of all recipes."""
    return "\n".join([HEAD, "|---|---|---|---|", *map(row, recipes.names())])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the table where a page has its marker."""
    return markdown.replace(MARKER, table()) if MARKER in markdown else markdown


if __name__ == "__main__":
    print(table())
