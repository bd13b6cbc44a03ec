"""docs/adding_a_codec.md, followed to the letter on a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.members import ROOT

PAGE = (ROOT / "docs" / "adding_a_codec.md").read_text(encoding="utf-8")
EDIT = re.compile(
    r"^(?P<say>New file|In) `(?P<path>[^`]+)`(?:, (?:below (?P<ticks>`+) ?(?P<anchor>.+?) "
    r"?(?P=ticks)|at the end))?:\n\n"
    r"(?P<fence>`{3,})\w+\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = re.search(r"^## Run it\n\n```bash\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
SAID = re.search(r"^\| it says \| so \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
LAWS = re.search(
    r"^\| law \| what breaks it, most often \|\n\|---\|---\|\n(.*)", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository without what is built or stored in it."""
    for name in ("src", "tests", "docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def edit(copy: Path, only: str = "") -> None:
    """Make every edit of the page, in order, or those of one file."""
    for found in EDIT.finditer(PAGE):
        path = copy / found["path"]
        if only and found["path"] != only:
            continue
        if found["say"] == "New file":
            assert not path.exists(), (
                f"{found['path']} is there already: the page needs another example"
            )
            path.write_text(found["text"], encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        at = len(lines) - 1
        if found["anchor"]:
            at = next(
                (i for i, line in enumerate(lines) if line.strip().startswith(found["anchor"])), -1
            )
            assert at >= 0, f"{found['path']} has no line that begins with {found['anchor']!r}"
        path.write_text(
            "".join([*lines[: at + 1], found["text"], *lines[at + 1 :]]), encoding="utf-8"
        )


# An editable install finds thinwire before PYTHONPATH does.
FORGET = (
    "import sys\n\nsys.meta_path[:] = [finder for finder in sys.meta_path if "
    "type(finder).__name__ != 'ScikitBuildRedirectingFinder']\n"
)


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    site = copy / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(FORGET, encoding="utf-8")
    path = os.pathsep.join([str(site), str(copy / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=copy,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_who_follows_the_page_has_a_codec_that_passes_all_checks(copy: Path) -> None:
    edit(copy)
    assert COMMANDS is not None
    commands = [
        line.removeprefix(".venv/bin/").removeprefix("python -m ")
        for line in COMMANDS[1].splitlines()
    ]
    taken = [
        command
        for command in commands
        if not any(word in command for word in ("mypy", "mkdocs", "test_pairs"))
    ]
    assert [command.split()[0] for command in taken] == ["ruff", "ruff", "pytest", "pytest"]
    for command in [*taken, 'pytest -q tests/test_pairs.py -k "missing or (upper and gather)"']:
        words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', command)]
        done = run(copy, *words)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    where = run(
        copy,
        "timeit",
        "-n1",
        "-r1",
        "import thinwire.what; print(thinwire.what.upper.__module__, thinwire.what.__file__)",
    )
    assert f"thinwire.what.scalar.upper {copy}" in where.stdout  # it was the copy that was tested


def test_what_is_forgotten_is_told_as_the_page_says(copy: Path) -> None:
    assert SAID is not None
    said = [
        words
        for row in SAID[1].splitlines()
        for words in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    edit(copy, only="src/thinwire/what/scalar/upper.py")
    names = ("test_exports.py", "test_docs.py", "test_pairs.py")
    told = run(
        copy, "pytest", "-q", *(f"tests/{name}" for name in names), "-k", "what-upper or missing"
    ).stdout
    edit(copy, only="src/thinwire/what/__init__.py")
    edit(copy, only="tests/what/scalar/test_upper.py")
    told += run(copy, "pytest", "-q", "tests/what/scalar/test_upper.py").stdout
    (copy / "src/thinwire/what/scalar/upper.py").write_text("class upper: ...\n", encoding="utf-8")
    told += run(copy, "pytest", "-q", "tests/test_exports.py", "-k", "what-upper").stdout
    assert len(said) >= 4
    assert [words for words in said if words.split("(…)")[0] not in told] == [], told[-6000:]


def test_the_laws_of_the_page_are_those_of_the_checks() -> None:
    assert LAWS is not None
    laws = [row.strip("| ").split(" | ")[0] for row in LAWS[1].splitlines()]
    checks = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/thinwire/testing").glob("*.py")
    )
    assert len(laws) > 10
    assert [law for law in laws if f'"{law}"' not in checks] == []


def test_a_codec_is_at_most_five_files_and_one_list() -> None:
    edits = list(EDIT.finditer(PAGE))
    new = {found["path"] for found in edits if found["say"] == "New file"}
    lists = {found["path"] for found in edits if found["say"] == "In"}
    assert len(new | lists) <= 5
    assert lists == {"src/thinwire/what/__init__.py"}
    assert all(found["text"].count("\n") == 1 for found in edits if found["say"] == "In")
    assert len(PAGE.split()) <= 1500
