"""The front of the command line: help at once and with nothing heavy behind it, and bad words in
one line."""

import json
import resource
import subprocess
import sys

import pytest

from thinwire.cli.main import COMMANDS, main

HEAVY = ("torch", "rich", "transformers", "matplotlib", "numpy")
LOOK = f"""
import sys
from thinwire.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
sys.stderr.write(",".join(name for name in {HEAVY!r} if name in sys.modules))
"""
HELPS = [["--help"], *([command, "--help"] for command in COMMANDS)]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_loads_nothing_heavy_and_is_instant(words: list[str]) -> None:
    """By the processor's time: others may have the cores. It waits for nothing, so on a machine
    with nothing else to do it takes no longer by the clock."""
    best = float("inf")
    for _ in range(5):
        before = processor_s()
        done = subprocess.run(
            [sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=False
        )
        best = min(best, processor_s() - before)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: thinwire")
        if best < 0.3:
            break
    assert best < 0.3


def processor_s() -> float:
    """Seconds of a core that processes which have ended here took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capfd.readouterr().out
    assert all(f"    {name} " in out and told in out for name, told in COMMANDS.items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "no command is called 'trian'; did you mean 'train'?"),
        ([], "expected a command. There are: train,"),
        (["--verson"], "no flag is called --verson; did you mean '--version'?"),
        (["recipes", "--wrold", "2"], "no flag is called --wrold; did you mean '--world'?"),
        (["recipes", "dense", "powersgd"], "'powersgd' is one word too many"),
        (["train", "-workers", "2"], "no flag is called -workers; did you mean '--workers'?"),
        (
            ["train", "--save_every=2"],
            "no flag is called --save_every; did you mean '--save-every'?",
        ),
        (
            ["train", "--resume=true"],
            "argument --resume/--no-resume: it takes no value, but was given 'true'",
        ),
        (
            ["train", "--strategy", "diloco", "period=8"],
            "'period=8' is one word too many; settings follow a comma, without a space",
        ),
        (["codecs", "--bitz", "3"], "no flag is called --bitz"),
        (["generate"], "the following arguments are required: --model"),
        (
            ["generate", "--promt", "x"],
            (
                "no flag is called --promt; did you mean '--prompt'?; the following arguments are "
                "required: --model"
            ),
        ),
        (
            ["data", "fetsh"],
            "argument fetch|pack: 'fetsh' is none of fetch, pack; did you mean 'fetch'?",
        ),
        (
            ["data", "fetch", "--sourse", "bible"],
            "no flag is called --sourse; did you mean '--source'?",
        ),
        (["data", "--jsn", "fetch"], "no flag is called --jsn; did you mean '--json'?"),
        (
            ["lab", "run", "--host", "2", "--", "ls", "--colour"],
            "no flag is called --host; did you mean '--hosts'?",
        ),
        (
            ["lab", "check", "--means", "netm"],
            "argument --means: 'netm' is none of auto, netem, queue; did you mean 'netem'?",
        ),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capfd.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_all_bad_flags_are_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "--stepz",
        "3",
        "--batch=none",
        "--optimizer",
        "adamx",
        "--lr",
        "-1",
        "--strateggy=diloco",
        "--seed",
        "4",
    ]
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capfd.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    for told in (
        "no flag is called --stepz; did you mean '--steps'?",
        "argument --batch: expected an integer of at least 1, got 'none'",
        (
            "argument --optimizer: expected auto, adamw, muon or sgd, got 'adamx'; did you mean "
            "'adamw'?"
        ),
        "argument --lr: expected a number above 0, got '-1'",
        "no flag is called --strateggy; did you mean '--strategy'?",
    ):
        assert told in err
    assert "seed" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "data", "fetsh"],
        ["data", "fetch", "--json", "--x"],
        ["data", "--json", "fetch", "--x"],
    ],
)
def test_bad_flags_of_an_action_are_an_object_under_json(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    words = words if words[0] != "--json" else [words[1], "--json", words[2]]
    with pytest.raises(SystemExit):
        main(words)
    assert json.loads(capfd.readouterr().out)["error"]


def test_what_is_refused_is_an_object_under_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "powersdg", "--json"]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert "did you mean 'powersgd'?" in json.loads(out)["error"]
