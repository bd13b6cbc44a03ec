"""How a command speaks: one rank for all, results and failures as text or as one object."""

from __future__ import annotations

import json

import pytest

from thinwire.text.output import CommandOutput, Parser, one_line


@pytest.mark.parametrize("as_json", [False, True])
def test_rank_0_alone_gives_the_result(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = CommandOutput("thinwire test", as_json)
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        output.result({"loss": 1.5}, "loss 1.5\n")
    out, err = capsys.readouterr()
    assert out == ('{"loss": 1.5}\n' if as_json else "loss 1.5\n")
    assert err == ""


def test_notes_are_the_speakers_and_go_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "2")
    output = CommandOutput("thinwire test", as_json=False)
    output.note("nobody hears this")
    output.note("step 4", by_rank=2)
    assert capsys.readouterr() == ("", "step 4\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_is_one_line_and_one_object(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    CommandOutput("thinwire test", as_json).failure("two reasons\n  this, and that")
    out, err = capsys.readouterr()
    assert err == "thinwire test: two reasons; this, and that\n"
    assert out == ('{"error": "two reasons; this, and that"}\n' if as_json else "")


def test_a_result_that_json_cannot_hold_is_no_result() -> None:
    with pytest.raises(ValueError, match="JSON"):
        CommandOutput("thinwire test", as_json=True).result({"loss": float("nan")}, "")


def test_all_that_is_wrong_with_flags_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("thinwire test", allow_abbrev=False)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--mode", choices=("fast", "slow"))
    parser.set_as_json(as_json=True)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--steps=many", "--mode=fats", "--stpes=3"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    for words in ("'many'", "did you mean 'fast'", "did you mean '--steps'"):
        assert words in err
        assert words in json.loads(out)["error"]
    assert err.count("\n") == 1


def test_a_message_of_one_line_stays_as_it_is() -> None:
    assert one_line("as it is") == "as it is"
