"""Frameworks that are installed are named, with their version and what of them is supported."""

from __future__ import annotations

import pytest

from thinwire.planner.machine import frameworks
from thinwire.planner.machine.frameworks import TRIED

VERSIONS = {"torch": f"{TRIED['torch'][0]}.0+cpu", "transformers": "99.0", "deepspeed": "0.17"}


def test_each_that_is_here_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frameworks, "installed", VERSIONS.get)
    found = {each.what.removeprefix("inside "): each for each in frameworks.frameworks()}
    assert {name: each.level for name, each in found.items()} == {
        "torch": "ok",
        "transformers": "note",
        "deepspeed": "note",
    }
    assert "inside DDP" in found["torch"].message
    assert f"tried with {TRIED['transformers'][0]} alone" in found["transformers"].message
    assert all(each.do for each in found.values() if each.level == "note")


def test_a_version_is_read_or_there_is_none() -> None:
    installed = frameworks.installed("torch")
    assert installed is not None
    assert installed[0].isdigit()
    assert frameworks.installed("no-such-package-of-anyone") is None
