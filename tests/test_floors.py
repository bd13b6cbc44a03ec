"""Imports only go down, floor by floor, and the four idea folders never import one another.

The sources are parsed, not run, so an import inside a function or under TYPE_CHECKING counts like
any other.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "thinwire"

# Top-level module or folder -> floor. On one floor neighbours may import each other, save the four
# folders of ideas.
FLOORS: dict[str, float] = {
    **dict.fromkeys(("core", "errors", "registry", "version", "say", "words", "kernels"), 0),
    **dict.fromkeys(("when", "what", "how", "on"), 1),
    **dict.fromkeys(("strategy", "recipes", "spell"), 2),
    **dict.fromkeys(("drive", "testing"), 3),
    **dict.fromkeys(("engine", "plan", "lab", "data"), 4),
    # the front door re-exports what lies below; only those above may come in through it
    "__init__": 4.5,
    **dict.fromkeys(("adapters", "bench", "serve", "train"), 5),
    **dict.fromkeys(("cli", "__main__"), 6),
}
IDEAS = frozenset({"when", "what", "how", "on"})


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that `source`, a module of `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str | None:
    """The top-level module of thinwire that a dotted name leads into; None outside thinwire."""
    head, *rest = name.split(".")
    if head != "thinwire":
        return None
    return (
        rest[0] if rest and rest[0] in FLOORS else "__init__"
    )  # `from thinwire import attach` uses the front door


def trespasses(source: str, room: str, package: str) -> list[str]:
    """Each import of `source` that goes up, or from one idea folder into another."""
    found = []
    for line, name in imports(source, package):
        target = room_of(name)
        if target is None or target == room:
            continue
        if FLOORS[target] > FLOORS[room]:
            found.append(
                f"line {line}: {room} (floor {FLOORS[room]}) imports {name} (floor "
                f"{FLOORS[target]}): imports only go down"
            )
        elif room in IDEAS and target in IDEAS:
            found.append(
                f"line {line}: {room} imports {name}: {', '.join(sorted(IDEAS))} never import one "
                "another; meet in core"
            )
    return found


FILES = sorted(SOURCE.rglob("*.py"))


def test_there_are_modules_to_check() -> None:
    assert FILES, f"no modules under {SOURCE}: this file would guard nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_only_go_down(path: Path) -> None:
    inside = path.relative_to(SOURCE)
    room = inside.parts[0].removesuffix(".py")
    assert room in FLOORS, f"{room} has no floor yet: place it in FLOORS of tests/test_floors.py"
    package = ".".join(["thinwire", *inside.parts[:-1]])
    found = trespasses(path.read_text(encoding="utf-8"), room, package)
    assert not found, "\n".join([inside.as_posix(), *found])


@pytest.mark.parametrize(
    ("room", "package", "source"),
    [
        ("core", "thinwire", "from thinwire.strategy import Strategy"),
        ("core", "thinwire", "from .what import topk"),
        ("core", "thinwire", "from . import when"),
        ("what", "thinwire.what", "from ..how.gather import gather"),
        ("what", "thinwire.what", "from .. import on"),
        ("on", "thinwire.on", "import thinwire.when.every as every"),
        ("how", "thinwire.how", "def f():\n    from thinwire.what import int4"),
        ("when", "thinwire.when", "if TYPE_CHECKING:\n    from thinwire.engine import Syncer"),
        ("engine", "thinwire.engine", "from thinwire import attach"),
        ("drive", "thinwire.drive", "import thinwire"),
        ("train", "thinwire.train", "from thinwire.cli import main"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_caught(room: str, package: str, source: str) -> None:
    assert len(trespasses(source, room, package)) == 1


@pytest.mark.parametrize(
    ("room", "package", "source"),
    [
        ("core", "thinwire", "import torch\nfrom .errors import ThinwireError"),
        (
            "what",
            "thinwire.what",
            "from . import _pack\nfrom .uniform import uniform\nfrom ..core import Codec",
        ),
        (
            "kernels",
            "thinwire.kernels.cpu",
            "from .. import reference\nfrom ...errors import ThinwireError",
        ),
        ("recipes", "thinwire", "from .strategy import Strategy\nfrom . import what, how"),
        ("train", "thinwire.train", "import thinwire\nfrom thinwire import attach"),
    ],
)
def test_an_import_that_goes_down_is_free(room: str, package: str, source: str) -> None:
    assert trespasses(source, room, package) == []
