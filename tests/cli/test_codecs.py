"""`thinwire codecs`: its table, its picture, the best codec that fits, and errors in a line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.planner.gradients import spread
from thinwire.cli.main import main
from thinwire.planner.tune import CHOICES
from thinwire.what import budget, topk, uniform


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "codecs",
        "--json",
        "--size",
        "4096",
        "--codec",
        "uniform(4)",
        "--codec",
        "topk(0.1)",
        "--plot",
        str(tmp_path / "c.svg"),
    ]
    assert main(flags) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["codec"] for row in told["codecs"]] == [repr(uniform(4)), repr(topk(0.1))]
    assert "topk" in (tmp_path / "c.svg").read_text()
    assert main(["codecs", "--size", "4096", "--codec", "uniform(4)"]) == 0
    assert "4,096 float32 values" in capsys.readouterr().out
    for wrong in (
        ["--codec", "unifrom(4)"],
        ["--size", "3"],
        ["--plot", "c.png"],
        ["--heavy", "--gradient", "x.pt"],
    ):
        assert main(["codecs", *wrong]) == 2


@pytest.fixture
def saved(tmp_path: Path) -> str:
    save_file(spread(), tmp_path / "grad.safetensors")
    return str(tmp_path / "grad.safetensors")


def test_the_command_names_the_best_that_fits(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--codec",
        "uniform(2)",
        "--codec",
        "uniform(8)",
        "--codec",
        "budget(4.0, per=0)",
        "--plot",
        str(tmp_path / "made" / "t.svg"),
    ]
    assert main(["codecs", "tune", saved, "--bits", "4.2", "--json", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["room_bytes"] == int(4.2 * told["values"] / 8)
    assert [row["frontier"] for row in told["codecs"]] == [True, True, True]
    assert told["best"]["line"] == "what=budget(4.0, per=0)"
    assert told["best"] | {"frontier": True} == told["codecs"][2] | {"line": told["best"]["line"]}
    assert told["best"]["widths"]["w0"] > told["best"]["widths"]["w2"]
    assert eval(told["best"]["line"].removeprefix("what="), {"budget": budget}) == budget(
        4.0, per=0
    )
    assert "budget(4.0, per=0)" in (tmp_path / "made" / "t.svg").read_text()

    assert main(["codecs", "tune", saved, "--bytes", "5000", *flags]) == 0
    out = capsys.readouterr().out
    assert "* budget(4.0, per=0)" in out
    assert "\n    what=budget(4.0, per=0)\n" in out
    assert "bits of each tensor at" in out


def test_the_usual_choices_on_the_command_line(
    saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["codecs", "tune", saved, "--bits", "3"]) == 0
    out, err = capsys.readouterr()
    best = next(line for line in out.splitlines() if line.startswith("    what=")).strip()
    assert "budget(" in best
    assert "sent later: what=feedback(…)" in out  # entries may be left out
    assert len(err.splitlines()) == len(CHOICES) + 4

    assert (
        main(["codecs", "--json", "--codec", "sign()", "tune", saved]) == 0
    )  # flags may stand before it; no budget: only the table
    told = json.loads(capsys.readouterr().out)
    assert ([row["codec"] for row in told["codecs"]], told["best"], told["room_bytes"]) == (
        ["sign()"],
        None,
        None,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--bits", "0.001"], "fits 1 bytes; the smallest, "),
        (
            ["--codec", "uniform(4)", "--bits", "1"],
            "no codec of the list fits 1,158 bytes; the smallest, uniform(4), has",
        ),
        (["--codec", "unifrom(4)"], "unifrom"),
        (["--codec", "every(4)"], "every"),
        (["--codec", "budget(9)"], "at most 8"),
        (["--bits", "3", "--bytes", "400"], "leave one out"),
        (["--bytes", "-3"], "at least 1 byte"),
        (["--plot", "tune.png"], "ends in .svg"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    words: list[str], told: str, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["codecs", "tune", saved, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error


def test_files_that_cannot_be_tuned(
    tmp_path: Path, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"w": torch.zeros(4, 4)}, tmp_path / "zeros.safetensors")
    made: list[tuple[list[str], str]] = [
        (["codecs", "tune", str(tmp_path / "none.safetensors")], "No such file"),
        (["codecs", "tune", str(tmp_path / "zeros.safetensors")], "nothing but zeros"),
        (["codecs", "--size", "4096", "tune", saved], "leave out --gradient, --size and --heavy"),
        (
            ["codecs", "--gradient", saved, "tune", saved],
            "leave out --gradient, --size and --heavy",
        ),
    ]
    for words, told in made:
        assert main(words) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["tune"], ["tuen", "x.pt"], ["tune", "x.pt", "--bits", "few"]])
def test_words_that_cannot_be(words: list[str], capsys: pytest.CaptureFixture[Any]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["codecs", *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
