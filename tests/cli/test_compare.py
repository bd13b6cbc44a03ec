"""`thinwire compare`: tables, the picture, and runs that cannot be read."""

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from thinwire import recipes
from thinwire.cli.compare import folded
from thinwire.cli.main import main
from thinwire.core import allreduce_nbytes
from thinwire.train.finished import ALIKE, HOLDS, read
from thinwire.train.plot import draw, sent_megabytes
from thinwire.train.result import Result
from thinwire.train.spoken import strategy_from
from thinwire.version import __version__

NUMEL, STEPS, WORLD = 1000, 40, 2


def a_run(
    strategy: str = "dense", nats: float = 2.0, sent: float = 4e3 * STEPS, **config: Any
) -> dict[str, Any]:
    """What run.json holds after a small run."""
    said = {
        "model": "gpt2-nano",
        "data": "bundled",
        "tokenizer": "auto",
        "strategy": strategy,
        "seed": 0,
        "context": 8,
        "batch": 2,
        "accumulate": 1,
    }
    return {
        "thinwire": __version__,
        "config": said | config,
        "strategy": strategy_from(strategy).to_toml(),
        "objective": "causal",
        "parameters": NUMEL,
        "world": WORLD,
        "precision": "fp32",
        "device": "cpu",
        "train_tokens": 5000,
        "result": {
            "validation_nats_per_token": nats,
            "validation_bits_per_byte": nats * 1.5,
            "steps": STEPS,
            "tokens": 1280,
            "train_s": 3.0,
            "tokens_per_s": 426.0,
            "sent_bytes": [sent] * WORLD,
            "around_bytes": [100.0] * WORLD,
            "dense_bytes": 4e3 * STEPS * WORLD,
            "ratio": 4e3 * STEPS / sent if sent else None,
            "ratio_all": 1.0,
            "time_shares": {
                "compute": 0.7,
                "exposed": 0.2,
                "input": 0.1,
                "encode": 0.0,
                "wire": 0.3,
            },
            "resumed_at": [],
            "sample": "",
        },
        "curve": {
            "train": [5 - step / STEPS for step in range(STEPS)],
            "validation": [{"step": 20, "nats": 3.0}, {"step": STEPS, "nats": nats}],
        },
        "buckets": [{"name": "bucket 0", "numel": NUMEL}],
        "places": {},
    }


def kept(folder: Path, run: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [
        kept(tmp_path / "one", a_run()),
        kept(tmp_path / "two", a_run("diloco,period=20", 2.1, 8e3)),
    ]


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


def test_what_is_read_is_what_a_run_tells() -> None:
    """The paths that are asked for are those of `Result.figures`, whatever it comes to hold."""
    import inspect

    told = inspect.getsource(Result.figures)
    for path in {*HOLDS, *(path for paths in ALIKE.values() for path in paths)}:
        head, _, last = path.rpartition(".")
        assert head in ("config", "result.time_shares") or f'"{last}"' in told, path


def test_a_picture_is_the_same_bytes_whatever_the_style(tmp_path: Path) -> None:
    import matplotlib

    runs, names = [a_run(), a_run("diloco,period=20", 2.1, 8e3)], ["$dense", "速い_<&>"]
    first = draw(runs, names, tmp_path / "a.svg").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        assert draw(runs, names, tmp_path / "b.svg").read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 30
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["a.svg", "b.svg"]


def test_one_rank_that_sent_nothing_has_one_panel(tmp_path: Path) -> None:
    alone = a_run(sent=0.0)
    alone["world"], alone["result"]["sent_bytes"], alone["result"]["around_bytes"] = 1, [0.0], [0.0]
    text = draw([alone], ["alone"], tmp_path / "a.svg").read_text()
    assert text.count('id="axes_') == 1
    assert draw([a_run()], ["dense"], tmp_path / "b.svg").read_text().count('id="axes_') == 2


def test_bytes_of_a_step_are_those_of_its_flights() -> None:
    flight = allreduce_nbytes(4 * NUMEL, WORLD) / 1e6
    assert sent_megabytes(a_run()) == pytest.approx([flight * (step + 1) for step in range(STEPS)])
    late = sent_megabytes(a_run("post_local_sgd,start=4,period=18", sent=6 * flight * 1e6))
    assert late[:4] == pytest.approx([flight, 2 * flight, 3 * flight, 4 * flight])
    assert late[20:23] == pytest.approx([4 * flight, 5 * flight, 5 * flight])
    assert late[-1] == pytest.approx(6 * flight)
    strided = sent_megabytes(a_run("local_sgd,period=2", sent=5e3, accumulate=4))
    assert [step + 1 for step in range(1, STEPS) if strided[step] > strided[step - 1]] == [
        8,
        16,
        24,
        32,
        40,
    ]


def test_words_fold_where_they_may() -> None:
    assert folded("runs/a-very-long-name", 10) == "runs/a-\nvery-long-\nname"
    assert folded(recipes.dense.__name__, 2) == "dense"


def test_the_file_itself_will_do(two: list[str]) -> None:
    assert read(Path(two[0], "run.json")) == read(Path(two[0]))
