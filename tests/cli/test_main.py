"""The front of the command line: help at once and with nothing heavy behind it, and bad words in one line."""

import json
import subprocess
import sys
import time

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
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - begin)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: thinwire")
        if best < 0.3:
            break
    assert best < 0.3


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capfd.readouterr().out
    assert all(f"    {name} " in out and told in out for name, told in COMMANDS.items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "no command is called 'trian'; did you mean 'train'?"),
        ([], "a command goes here. There are: train,"),
        (["recipes", "--wrold", "2"], "unrecognized arguments: --wrold"),
        (["generate"], "the following arguments are required: --model"),
    ],
)
def test_bad_words_are_one_line(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capfd.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_what_is_refused_is_an_object_under_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "powersdg", "--json"]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert "did you mean 'powersgd'?" in json.loads(out)["error"]
