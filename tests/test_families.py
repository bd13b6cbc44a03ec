from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.families import Run, Runs, Task, nats, tables

ROOT = Path(__file__).parents[1]
PAGE = "benchmarks/results/families.md"


def test_the_page_shows_what_the_file_holds() -> None:
    held = Runs(ROOT / "benchmarks/results/families.json")
    assert tables(held) in (ROOT / PAGE).read_text(encoding="utf-8"), (
        f"paste `python -m benchmarks.families --markdown` into {PAGE}"
    )


def test_a_run_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "STEPS", 3)
    monkeypatch.setattr(families, "WINDOWS", 4)
    asked, file = Run("feedback(topk(0.1))", "sgd", 0.3, 0), tmp_path / "families.json"
    made = Runs(file).get(asked, Task().trained)
    assert made is not None
    assert nats(made) < families.KNOWS_NOTHING
    assert made["bytes"] > 0
    assert made["owed"] > 0
    assert Runs(file).get(asked, None) == made


def test_what_raises_is_shown_and_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "STEPS", 3)
    made = Runs(tmp_path / "families.json").get(Run("topk(-1)", "sgd", 0.3, 0), Task().trained)
    assert made is not None
    assert made["status"] == "failed"
    assert "topk(k=-1" in made["error"]
