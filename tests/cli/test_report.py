"""`thinwire report`: a page from runs, or from a bench's records; what is neither is refused."""

import json
from pathlib import Path

import pytest

from tests.cli.test_compare import a_run
from thinwire.cli.main import main


def put(folder: Path, **more: object) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(a_run(**more)))  # type: ignore[arg-type]
    return folder


def test_a_page_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        put(tmp_path / "one"),
        put(tmp_path / "two", strategy="diloco,period=10", nats=2.1, sent=1e3),
    ]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "page.html")}
    assert "diloco,period=10" in page
    assert page.count("<svg") >= 3


def test_a_page_of_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = {
        "name": "DDP",
        "contestant": "ddp",
        "settings": {},
        "seed": 0,
        "parameters": 10,
        "tokens_per_step": 8,
        "error": None,
    }
    records = [
        {"kind": "environment", "thinwire": "0.1.0", "command": "thinwire bench"},
        {
            "kind": "curve",
            **curve,
            "steps": 20,
            "validation": [[10, 3.0], [20, 2.0]],
            "bytes_per_step": 40.0,
        },
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "DDP" in (tmp_path / "page.html").read_text()
    assert "DDP" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["DDP"]


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").write_text("")
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path), str(tmp_path / "other")]) == 2
    assert "give it alone" in capsys.readouterr().err
