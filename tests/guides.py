"""Follow a guide of docs/ to the letter on a copy of the repository.

A guide has edits ("New file `path`:", "In `path`, below `line`:", each before a code block) and
commands (the block below "## Run it").
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.members import ROOT

EDIT = re.compile(
    r"^(?P<say>New file|In) `(?P<path>[^`]+)`(?:, (?:below (?P<ticks>`+) ?(?P<anchor>.+?) "
    r"?(?P=ticks)|at the end))?:\n\n"
    r"(?P<fence>`{3,})\w+\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
# An editable install finds thinwire before PYTHONPATH does.
FORGET = (
    "import sys\n\nsys.meta_path[:] = [finder for finder in sys.meta_path if "
    "type(finder).__name__ != 'ScikitBuildRedirectingFinder']\n"
)


def copied(folder: Path) -> Path:
    """Copy the repository into `folder`, without what is built or stored in it."""
    for name in ("src", "tests", "docs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in the copy, with the copy's thinwire."""
    site = copy / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(FORGET, encoding="utf-8")
    path = os.pathsep.join([str(site), str(copy / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=copy,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Guide:
    """A guide. text: the page's Markdown."""

    text: str

    @classmethod
    def of(cls, name: str) -> Guide:
        return cls((ROOT / "docs" / name).read_text(encoding="utf-8"))

    def edits(self) -> list[re.Match[str]]:
        return list(EDIT.finditer(self.text))

    def edit(self, copy: Path, only: str = "") -> None:
        """Make every edit of the page, in order, or those of one file."""
        for found in self.edits():
            path = copy / found["path"]
            if only and found["path"] != only:
                continue
            if found["say"] == "New file":
                assert not path.exists(), f"{found['path']} exists: choose another example"
                path.write_text(found["text"], encoding="utf-8")
                continue
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            at = len(lines) - 1
            if found["anchor"]:
                at = next(
                    (i for i, line in enumerate(lines) if line.strip().startswith(found["anchor"])),
                    -1,
                )
                assert at >= 0, f"{found['path']} has no line that begins with {found['anchor']!r}"
            path.write_text(
                "".join([*lines[: at + 1], found["text"], *lines[at + 1 :]]), encoding="utf-8"
            )

    def commands(self) -> list[list[str]]:
        """Return the arguments of each command of "Run it", without the interpreter's."""
        block = re.search(r"^## Run it\n\n```bash\n(.*?)```$", self.text, re.MULTILINE | re.DOTALL)
        assert block is not None
        lines = [
            line.removeprefix(".venv/bin/").removeprefix("python -m ")
            for line in block[1].splitlines()
        ]
        return [words(line) for line in lines]

    def rows(self, head: str) -> list[list[str]]:
        """Return the cells of the table whose head is `head`."""
        begin = self.text.index(f"{head}\n|---|---|\n") + len(f"{head}\n|---|---|\n")
        table = self.text[begin:].split("\n\n")[0].strip()
        return [row.strip("| ").split(" | ") for row in table.splitlines()]


def words(command: str) -> list[str]:
    """Split a command at spaces, and leave what is quoted whole."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', command)]
