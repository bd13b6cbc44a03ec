"""`thinwire compare`: tables, the picture, and runs that cannot be read."""

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import STEPS, a_run, kept
from thinwire import recipes
from thinwire.cli.compare import folded
from thinwire.cli.main import main
from thinwire.train.finished import HOLDS


def test_json_is_one_object(two: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *two, "--json", "--out", "loss.svg"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert (out.count("\n"), err, told["differ"]) == (1, "", {})
    assert [row["gap"] for row in told["runs"]] == [0, pytest.approx(0.05)]
    assert [row["sent_bytes_per_rank"] for row in told["runs"]] == [4e3 * STEPS, 8e3]
    assert ElementTree.parse(told["picture"]).getroot().tag.endswith("svg")


@pytest.mark.parametrize("wide", [80, 120])
def test_the_table_fits_and_tells_all_runs(
    wide: int, two: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(wide))
    more = [
        kept(Path(f"run-{n}"), a_run(f"diloco,period={n}", 2 + n / 100, 8e3)) for n in (4, 5, 8, 10)
    ]
    assert main(["compare", *two, *more]) == 0
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= wide
    assert all(said in out for said in ("+5.00%", "20.0x", "diloco,period=10", "3.1500", "160 kB"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed (0, 1)"),
        ({"model": "bert-nano"}, "model (gpt2-nano, bert-nano)"),
        ({"data": "x.txt"}, "data (bundled, x.txt)"),
    ],
)
def test_runs_that_differ_are_told(
    change: dict[str, Any], what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [
        kept(tmp_path / "one", a_run()),
        kept(tmp_path / "two", a_run("diloco,period=20", **change)),
    ]
    assert main(["compare", *folders, "--out", str(tmp_path / "x.svg")]) == 0
    assert f"the runs differ in {what}" in capfd.readouterr().err


def test_another_number_of_tokens_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = a_run("diloco,period=20")
    other["result"]["tokens"] = 9
    assert (
        main(
            [
                "compare",
                kept(tmp_path / "one", a_run()),
                kept(tmp_path / "two", other),
                "--out",
                str(tmp_path / "x.svg"),
            ]
        )
        == 0
    )
    assert "differ in tokens (1280, 9)" in capfd.readouterr().err


def damaged(path: str, value: Any = None) -> str:
    run = copy.deepcopy(a_run())
    *above, last = path.split(".")
    place: Any = run
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(run)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "it is no JSON"),
        ("[]", "thinwire is missing"),
        (json.dumps(a_run())[:-30], "it is no JSON"),
        (json.dumps(a_run()).replace("426.0", "NaN"), "NaN is no number"),
        (damaged("thinwire", "9.0.0"), "is of Thinwire 9.0.0"),
        (damaged("strategy", "[when]\nuse = 'never'"), "none of this version's"),
        (damaged("result.sent_bytes", [1.0]), "another length"),
        (damaged("curve.train", ["a"]), "curve.train is of another kind"),
        (damaged("curve.validation", [{"step": 99, "nats": 1.0}]), "something else than steps"),
        (damaged("buckets", [{}]), "no numel"),
        (damaged("result.validation_nats_per_token", 0.0 - 1), "cannot be"),
        *((damaged(path), f"{path} is missing") for path in HOLDS),
    ],
)
def test_a_damaged_run_is_one_line(
    text: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(text)
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "x.svg")]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert not (tmp_path / "x.svg").exists()


def test_what_is_no_run_is_one_line(
    two: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.toml").write_text("")
    for words, says in (
        (["nowhere"], "no such folder"),
        (["half"], "the run is not finished"),
        (["."], "it is no run's"),
        ([two[0], two[0] + "/"], "is given twice"),
        ([two[0], "--out", "x.png"], "ends in .svg"),
        ([two[0], "--out", "no/x.svg"], "does not exist"),
    ):
        assert main(["compare", *words]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert says in err


def test_words_fold_where_they_may() -> None:
    assert folded("runs/a-very-long-name", 10) == "runs/a-\nvery-long-\nname"
    assert folded(recipes.dense.__name__, 2) == "dense"
