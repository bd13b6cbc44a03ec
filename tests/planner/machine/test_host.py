"""What is found of a machine's software, processors and disks."""

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.planner.machine.findings import only
from thinwire.errors import LabError
from thinwire.kernels import native
from thinwire.planner.machine import host
from thinwire.planner.machine.finding import Finding


def test_a_check_that_cannot_look_says_so() -> None:
    def broken() -> Iterator[Finding]:
        raise PermissionError("not for you")
        yield

    assert list(host.looked(broken)) == [
        Finding("note", "broken", "could not be looked at: PermissionError: not for you")
    ]


@pytest.mark.parametrize(
    ("here", "asked", "level", "words"),
    [
        (("torch", "baseline", "avx2"), None, "ok", "C++ for avx2, the best of baseline, avx2"),
        (
            ("torch", "baseline", "avx2"),
            "baseline",
            "note",
            "baseline, as THINWIRE_KERNELS asks; avx2 runs here",
        ),
        (("torch",), None, "note", "none were built"),
        (
            ("torch", "baseline"),
            "avx512",
            "problem",
            "not built, or not run by this processor; here are torch, baseline",
        ),
        (("torch", "baseline"), "sse", "problem", "choose one of torch, baseline, avx2, avx512"),
    ],
)
def test_it_tells_which_kernels_are_in_use(
    here: tuple[str, ...],
    asked: str | None,
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "available", lambda: here)
    monkeypatch.setattr(native, "chosen", lambda: native._requested.__wrapped__(asked))
    found = only(host.kernels, "kernels")
    assert found.level == level
    assert words in found.message


def test_packages_that_are_missing_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert {each.level for each in host.packages()} == {"note"}


def test_every_extra_package_is_looked_for() -> None:
    """The table is pyproject's: a package that a command comes to need is not forgotten here."""
    told = {}
    for line in (Path(__file__).parents[3] / "pyproject.toml").read_text().splitlines():
        if found := re.fullmatch(r"(train|hub) = \[(.*)\]", line):
            told |= {
                re.split(r"[><=]", name.strip(' "'))[0]: found[1] for name in found[2].split(",")
            }
    assert told == {name: extra for name, (_, extra) in host.PACKAGES.items()}


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert only(host.room, "cache").level == "problem"


def test_a_machine_without_namespaces_has_no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LabError("this machine gives nobody namespaces")

    monkeypatch.setattr("thinwire.lab.Lab", refuse)
    [found] = host.lab()
    assert found.level == "note"
    assert "gives nobody namespaces" in found.message
