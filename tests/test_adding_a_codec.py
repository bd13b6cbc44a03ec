"""docs/adding_a_codec.md, followed to the letter on a copy of the repository."""

import re
from pathlib import Path

import pytest

from tests import guides
from tests.guides import Guide, run
from tests.members import ROOT

PAGE = Guide.of("adding_a_codec.md")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return guides.copied(tmp_path)


@pytest.mark.long
def test_who_follows_the_page_has_a_codec_that_passes_all_checks(copy: Path) -> None:
    PAGE.edit(copy)
    taken = [command for command in PAGE.commands() if command[0] not in ("mypy", "mkdocs")]
    assert [command[0] for command in taken] == ["ruff", "ruff", "pytest"]
    for command in taken:
        done = run(copy, *command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    where = run(
        copy,
        "timeit",
        "-n1",
        "-r1",
        "import thinwire.what; print(thinwire.what.upper.__module__, thinwire.what.__file__)",
    )
    assert f"thinwire.what.scalar.upper {copy}" in where.stdout  # it was the copy that was tested


@pytest.mark.long
def test_each_missing_edit_is_named_as_the_page_says(copy: Path) -> None:
    messages = [
        words for row in PAGE.rows("| it says | so |") for words in re.findall(r"`([^`]+)`", row[0])
    ]
    PAGE.edit(copy, only="src/thinwire/what/scalar/upper.py")
    names = ("test_exports.py", "test_docs.py", "test_pairs.py")
    output = run(
        copy, "pytest", "-q", *(f"tests/{name}" for name in names), "-k", "what-upper or missing"
    ).stdout
    PAGE.edit(copy, only="src/thinwire/what/__init__.py")
    PAGE.edit(copy, only="tests/what/scalar/test_upper.py")
    output += run(copy, "pytest", "-q", "tests/what/scalar/test_upper.py").stdout
    (copy / "src/thinwire/what/scalar/upper.py").write_text("class upper: ...\n", encoding="utf-8")
    output += run(copy, "pytest", "-q", "tests/test_exports.py", "-k", "what-upper").stdout
    assert len(messages) >= 4
    assert [words for words in messages if words.split("(…)")[0] not in output] == [], output[
        -6000:
    ]


def test_the_laws_of_the_page_are_those_of_the_checks() -> None:
    laws = [row[0] for row in PAGE.rows("| law | what breaks it, most often |")]
    checks = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/thinwire/testing").glob("*.py")
    )
    assert len(laws) > 10
    assert [law for law in laws if f'"{law}"' not in checks] == []


def test_a_codec_is_at_most_five_files_and_one_list() -> None:
    edits = PAGE.edits()
    new = {found["path"] for found in edits if found["say"] == "New file"}
    lists = {found["path"] for found in edits if found["say"] == "In"}
    assert len(new | lists) <= 5
    assert lists == {"src/thinwire/what/__init__.py"}
    assert all(found["text"].count("\n") == 1 for found in edits if found["say"] == "In")
    assert len(PAGE.text.split()) <= 1500
