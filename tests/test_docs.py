"""Every python block of the pages runs, and prints what the page says that it prints.

The blocks of a page run in order in one namespace. A text block right after a python block is its
output, compared word by word.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from scripts import docs_recipes, docs_tables
from tests.members import INTERFACES, ROOT, files, load
from thinwire import recipes

DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
SECTIONS = [
    "Steps",
    "Maths",
    "Strengths and weaknesses",
    "When to use it",
    "Example",
    "Source",
    "Refused",
]


@dataclass(frozen=True)
class Block:
    """One python block: its code, its first line in the page, and the output that the page
    shows."""

    code: str
    line: int
    output: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(match["code"], text.count("\n", 0, match.start("code")) + 1, match["output"])


def printed(block: Block, page: Path, namespace: dict[str, object]) -> str:
    """What a block prints; a traceback names the page and the line in it."""
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)
    return out.getvalue()


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


PAGES = sorted(
    set(DOCS.rglob("*.md")) - {DOCS / "adding_a_codec.md", DOCS / "adding_a_route.md"}
)  # tests of their own follow these to the letter
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
EXTRAS = {"frameworks/ray.md": "ray"}  # by page: what its blocks need beside dev's
TECHNIQUES = [page for page in PAGES if page.parent.name in INTERFACES]


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=name)
def test_a_page_prints_what_it_says(page: Path) -> None:
    if name(page) in EXTRAS:
        pytest.importorskip(EXTRAS[name(page)], reason="an extra that is not installed")
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        out = printed(block, page, namespace)
        if block.output is not None:
            assert out.split() == block.output.split(), f"{name(page)}:{block.line} prints\n{out}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_seen(page: Path) -> None:
    """A fence that is indented, or has a space in it, would escape the tests above."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"```\s*py", text)) == len(list(blocks(page)))


@pytest.mark.parametrize("page", TECHNIQUES, ids=name)
def test_a_technique_page_is_complete(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == SECTIONS
    assert any(block.output for block in blocks(page)), "show an example and its output"


@pytest.mark.parametrize("folder", INTERFACES)
def test_every_export_is_in_the_table(folder: str) -> None:
    table = docs_tables.on_page_markdown((DOCS / "members.md").read_text(encoding="utf-8"))
    assert [export for export in load(folder).__all__ if f"`{export}`" not in table] == []


@pytest.mark.parametrize(("folder", "member"), files())
def test_a_member_has_a_page_and_the_table_and_the_menu_lead_there(
    folder: str, member: str
) -> None:
    page = f"{folder}/{member}.md"
    assert (DOCS / page).is_file(), f"write docs/{page}"
    if folder == "what":  # its rows and menus are made from what the package exports
        assert page in str(docs_tables.filled(NAV)), f"export {member} from {folder}/__init__.py"
        return
    table = (DOCS / "members.md").read_text(encoding="utf-8")
    there = {
        f"give {member} a row in docs/members.md": f"]({page}) |" in table,
        f"give docs/{page} a line in mkdocs.yml": page in str(NAV),
    }
    assert all(there.values()), "; ".join(reason for reason, done in there.items() if not done)


def test_the_table_of_codecs_states_their_traits() -> None:
    rows = {cls.__name__: docs_tables.row(cls) for cls in docs_tables.codecs()}
    assert rows["cast"].endswith('| `cast("bf16")` | 16 | yes | no |')
    assert rows["identity"].endswith("| `identity()` | 32 | yes | exact |")
    assert rows["threshold"].count("at most") == 1  # the data decide


def test_every_recipe_is_in_the_table() -> None:
    table = docs_recipes.on_page_markdown((DOCS / "members.md").read_text(encoding="utf-8"))
    assert [recipe for recipe in recipes.names() if f"| `{recipe}`" not in table] == []


def test_the_table_of_recipes_states_their_slots_bits_and_papers() -> None:
    slots = "`every(100)`, `identity()`, `native()`, `deltas(nesterov())`"
    papers = "arXiv:2311.08105, arXiv:2503.09799"
    assert docs_recipes.row("diloco") == f"| `diloco` | {slots} | 0.56 | {papers} |"
    assert docs_recipes.row("lag").count("by data") == 1
