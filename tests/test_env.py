"""The environment is read in one place; what it holds is read as it should be, or refused."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from thinwire import env
from thinwire.errors import ConfigError

SOURCE = Path(__file__).parents[1] / "src" / "thinwire"
READERS = {"env.py"}  # no exceptions: what a child process gets, comes from env.copy()


def readers(source: str) -> bool:
    """Whether a module touches os.environ or os.getenv, under any name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}:
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names |= {alias.name for alias in node.names}
    return bool(names & {"environ", "environb", "getenv", "putenv"})


def test_nothing_else_reads_the_environment() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if readers(path.read_text(encoding="utf-8"))
    }
    assert found == READERS, "ask thinwire.env; it says who this process is"


@pytest.mark.parametrize(
    "source", ["import os\nos.environ", "from os import environ", "import os as o\no.getenv('A')"]
)
def test_a_reader_is_seen(source: str) -> None:
    assert readers(source)


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not env.launched()
    assert (env.rank(), env.world_size(), env.local_rank(), env.group_rank()) == (0, 1, 0, 0)
    assert (env.local_world_size(), env.local_world_size(4)) == (1, 4)


def test_a_launcher_says_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "GROUP_RANK": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    assert env.launched()
    assert (env.rank(), env.world_size(), env.local_rank()) == (5, 8, 1)
    assert (env.local_world_size(9), env.group_rank()) == (4, 1)


@pytest.mark.parametrize("value", ["", "two", "1.5"])
def test_what_is_no_integer_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE='{value}': expected an integer"):
        env.world_size()


def test_what_a_launcher_must_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set: start the ranks with torchrun"):
        env.needed("MASTER_ADDR")
    monkeypatch.setenv("MASTER_ADDR", "host0")
    assert env.needed("MASTER_ADDR") == "host0"


def test_what_is_put_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINWIRE_TEST", "before")
    env.put_default("THINWIRE_TEST", "other")
    assert env.text("THINWIRE_TEST") == "before"
    env.put("THINWIRE_TEST", "after")
    assert env.copy()["THINWIRE_TEST"] == os.environ["THINWIRE_TEST"] == "after"
    env.drop("THINWIRE_TEST")
    assert not env.is_set("THINWIRE_TEST")
    assert env.text("THINWIRE_TEST", "none") == "none"
