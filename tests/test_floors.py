"""Imports only go down, floor by floor, and no modules import one another in a circle.

The table of floors and the parser are in `scripts/import_graph.py`, which prints the graph.
"""

from pathlib import Path

import pytest

from scripts.import_graph import FLOORS, SOURCE, circles, graph, modules, trespasses

FILES = sorted(SOURCE.rglob("*.py"))


def test_there_are_modules_to_check() -> None:
    assert FILES, f"no modules under {SOURCE}: this file would guard nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_only_go_down(path: Path) -> None:
    inside = path.relative_to(SOURCE)
    room = inside.parts[0].removesuffix(".py")
    assert room in FLOORS, f"{room} has no floor yet: place it in FLOORS of import_graph.py"
    package = ".".join(["thinwire", *inside.parts[:-1]])
    problems = trespasses(path.read_text(encoding="utf-8"), room, package)
    assert not problems, "\n".join([inside.as_posix(), *problems])


def test_no_modules_import_one_another_in_a_circle() -> None:
    found = circles(graph(modules()))
    assert not found, "\n".join(", ".join(ring) for ring in found)


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a", "d"}}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["d", "e"]]


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
        ("train", "thinwire.train", "from thinwire import attach"),
        ("bench", "thinwire.bench", "from thinwire.train.config import Config"),
        ("net", "thinwire.net", "from thinwire.core import Link"),
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
        (
            "strategy",
            "thinwire.strategy",
            "from .strategy import Strategy\nfrom .. import what, how",
        ),
        ("cli", "thinwire.cli", "import thinwire\nfrom thinwire import attach"),
    ],
)
def test_an_import_that_goes_down_is_free(room: str, package: str, source: str) -> None:
    assert trespasses(source, room, package) == []
