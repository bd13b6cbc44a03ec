"""Which codec for a gradient: bytes and errors of each, budgets that fill what was asked for, and
the best that fits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from thinwire.cli.main import main
from thinwire.errors import ConfigError, StrategyError
from thinwire.planner.codecs import frontier, laid, measured
from thinwire.planner.tune import CHOICES, Choice, best_within, filling, limit_in_bytes, tried
from thinwire.strategy.reading import spelled
from thinwire.what import budget


def spread() -> dict[str, Tensor]:
    """Tensors of very different scale."""
    draw = torch.Generator().manual_seed(0)
    return {f"w{i}": torch.randn(64, 48, generator=draw) * 10.0**-i for i in range(3)} | {
        "bias": torch.randn(48, generator=draw)
    }


@pytest.fixture
def saved(tmp_path: Path) -> str:
    save_file(spread(), tmp_path / "grad.safetensors")
    return str(tmp_path / "grad.safetensors")


def test_bytes_and_errors_are_those_of_thinwire_codecs() -> None:
    codes = ["uniform(4)", "topk(0.1) >> nf4()", "lowrank(2)", "budget(3.0)"]
    for row in tried(codes, spread()):
        other = measured(spelled("what", row.codec), spread(), 1.0)
        assert (row.nbytes, row.bits, row.error) == (other.nbytes, other.bits, other.error)
        assert (row.widths is not None) == (row.codec == "budget(3.0)")


def test_every_usual_choice_works_and_is_there_once() -> None:
    rows = list(tried(CHOICES, spread()))
    assert len(rows) == len({row.codec for row in rows}) == len(CHOICES) > 50
    assert all(row.nbytes > 0 and 0 <= row.error < 3 for row in rows)
    best = [row.codec for row in frontier(rows)]
    assert sum("budget" in code for code in best) > 5


def test_widths_are_told_for_a_budget_that_sees_the_tensors_themselves() -> None:
    codes = [
        "budget(4.0, per=0)",
        "feedback(budget(4.0, per=0))",
        "hadamard(64) >> budget(4.0)",
        "by_role(matrix=budget(4.0))",
        "uniform(4)",
    ]
    plain, wrapped, *others = tried(codes, spread())
    x, spec = laid(spread())
    assert plain.widths == wrapped.widths == budget(4.0, per=0).chosen(x, spec)
    assert list(plain.widths or ()) == ["w0", "w1", "w2", "bias"]
    assert [row.widths for row in others] == [None] * 3


@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 3.0, 5.01, 8.0])
def test_budgets_fill_what_is_asked_for(bits: float) -> None:
    spec = laid(spread())[1]
    room = int(bits * spec.numel / 8)
    found = [spelled("what", code) for code in filling(room, spec)]
    assert len(found) == {0.3: 2, 1.0: 3}.get(
        bits, 4
    )  # the largest tensor takes 0.7 bits; without a 0, 2 are the least
    for codec in found:
        assert (
            room - codec.nbytes(spec) <= spec.numel * 0.01 / 8 + 2
        )  # a hundredth of a bit a value


def test_no_budget_fills_what_is_too_little_or_too_much() -> None:
    spec = laid(spread())[1]
    assert filling(20, spec) == filling(9 * spec.numel, spec) == []


def test_the_best_within_some_bytes() -> None:
    rows = [
        Choice(name, nbytes, 0.0, error, False, None)
        for name, nbytes, error in (("a", 9, 0.1), ("b", 5, 0.3), ("c", 4, 0.3), ("d", 2, 0.9))
    ]
    assert [best_within(rows, room).codec for room in (2, 3, 4, 8, 9, 99)] == [
        "d",
        "d",
        "c",
        "c",
        "a",
        "a",
    ]
    with pytest.raises(ConfigError, match="the smallest, d, has 2 "):
        best_within(rows, 1)


@pytest.mark.parametrize(
    ("bits", "nbytes", "told"),
    [
        (3.0, 5, "leave one out"),
        (0.0, None, "more than 0"),
        (float("nan"), None, "more than 0"),
        (0.001, None, "0 bytes"),
        (None, 0, "0 bytes"),
    ],
)
def test_bytes_that_cannot_be(bits: float | None, nbytes: int | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        limit_in_bytes(bits, nbytes, 1000)


def test_a_code_that_makes_no_codec_is_refused_before_any_is_tried() -> None:
    with pytest.raises(StrategyError, match="unifrom"):
        next(tried(["uniform(4)", "unifrom(4)"], spread()))


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
