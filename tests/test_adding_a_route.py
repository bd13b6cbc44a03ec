"""docs/adding_a_route.md, followed to the letter on a copy of the repository."""

import re
from pathlib import Path

import pytest

from tests import guides
from tests.guides import Guide, run
from tests.members import ROOT

PAGE = Guide.of("adding_a_route.md")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return guides.copied(tmp_path)


@pytest.mark.long
def test_who_follows_the_page_has_a_route_that_passes_all_checks(copy: Path) -> None:
    PAGE.edit(copy)
    taken = [
        command
        for command in PAGE.commands()
        if command[0] not in ("mypy", "mkdocs") and "tests/test_pairs.py" not in command
    ]
    assert [command[0] for command in taken] == ["ruff", "ruff", "pytest"]
    for command in taken:
        done = run(copy, *command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        assert "no tests ran" not in done.stdout


@pytest.mark.long
def test_the_route_obeys_the_laws_with_every_codec_that_it_carries(copy: Path) -> None:
    PAGE.edit(copy)
    (command,) = [each for each in PAGE.commands() if "tests/test_pairs.py" in each]
    done = run(copy, *command)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"


@pytest.mark.long
@pytest.mark.long
def test_each_missing_edit_is_named_as_the_page_says(copy: Path) -> None:
    messages = [
        words for row in PAGE.rows("| it says | so |") for words in re.findall(r"`([^`]+)`", row[0])
    ]
    PAGE.edit(copy, only="src/thinwire/how/line.py")
    names = ("test_exports.py", "test_docs.py", "test_pairs.py")
    output = run(
        copy, "pytest", "-q", *(f"tests/{name}" for name in names), "-k", "how-line or missing"
    ).stdout
    (copy / "src/thinwire/how/line.py").write_text("class line: ...\n", encoding="utf-8")
    output += run(copy, "pytest", "-q", "tests/test_exports.py", "-k", "how-line").stdout
    assert len(messages) >= 4
    assert [words for words in messages if words not in output] == [], output[-6000:]


def test_the_laws_of_the_page_are_those_of_the_checks() -> None:
    laws = [row[0] for row in PAGE.rows("| law | what breaks it, most often |")]
    checks = (ROOT / "src/thinwire/testing/check_route.py").read_text(encoding="utf-8")
    assert len(laws) > 5
    assert [law for law in laws if f'"{law}"' not in checks] == []
