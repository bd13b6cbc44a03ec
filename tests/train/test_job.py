"""The training job: every recipe runs, the command says what it did, and what cannot be is one line and an exit code."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.members import ROOT
from thinwire import recipes
from thinwire.engine import Report, Row
from thinwire.train.adamw import rate
from thinwire.train.clock import landing, rounds
from thinwire.train.command import main
from thinwire.train.job import Job, run
from thinwire.train.model import GPTConfig
from thinwire.train.result import Moment, Result
from thinwire.train.show import Lines, LiveLine, Show
from thinwire.train.spoken import strategy_from

SMALL = GPTConfig(context=16, layers=2, heads=2, width=16)
SPOKEN = {
    "dense": "dense",
    "accumulation": "accumulation,passes=3",
    "delayed_update": "delayed_update,tau=2",
    "powersgd": "powersgd,rank=2,start=3",
    "topk_sgd": "topk_sgd,share=0.02",
    "qsgd": "qsgd,bits=4",
    "two_level": "two_level,node=1",
    "local_sgd": "local_sgd,period=3",
    "post_local_sgd": "post_local_sgd,start=2,period=2",
    "diloco": "diloco,period=3",
    "streaming_diloco": "streaming_diloco,period=4,fragments=2,tau=1",
    "sparseloco": "sparseloco,period=3",
}


def result(spoken: str, show: Show | None = None, steps: int = 6) -> Result:
    job = Job(strategy_from(spoken), steps=steps, batch=2, model=SMALL, windows=8, sample=10)
    return run(job, show or Show())


def torchrun(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "thinwire.train"]
    return subprocess.run([*launch, *arguments], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_every_recipe_is_run() -> None:
    assert set(SPOKEN) == set(recipes.names())


@pytest.mark.parametrize("spoken", SPOKEN.values(), ids=list(SPOKEN))
def test_a_recipe_runs_alone(spoken: str) -> None:
    done = result(spoken)
    assert len(done.curve) == done.end.step == done.end.report.steps == done.setting.steps >= 6
    assert done.validation[-1][0] == done.end.step
    assert 4 < done.nats < 6, "near ln 256 = 5.55, where bytes are guesses"
    assert done.end.report.sent_bytes == 0
    assert len(done.sample) <= len("The ") + 10


def test_a_run_is_decided_by_its_seed() -> None:
    one, two = result("qsgd"), result("qsgd")
    assert (one.curve, one.validation, one.sample) == (two.curve, two.validation, two.sample)


def test_the_model_learns() -> None:
    curve = result("dense", steps=40).curve
    assert sum(curve[-5:]) / 5 < curve[0] - 0.5


def test_a_run_ends_where_something_lands() -> None:
    strategy = strategy_from("streaming_diloco,period=100,fragments=4,tau=5")
    assert landing(strategy, 960, buckets=4) == 980
    assert landing(strategy_from("local_sgd,period=16"), 960, buckets=2) == 960
    assert landing(strategy_from("accumulation,passes=8"), 6, buckets=2) == 8


def test_a_dense_start_accumulates_nothing() -> None:
    from thinwire import Strategy
    from thinwire.when import every, warmup

    passes = rounds(Strategy(when=warmup(2, every(3))), steps=8, buckets=1)
    assert list(passes) == [range(1), range(1, 2), range(2, 5), range(5, 8)]


def test_the_rate_rises_falls_and_ends_at_a_tenth() -> None:
    rates = [rate(step, 960, 3e-3) for step in range(960)]
    assert max(rates) == rates[59] == 3e-3
    assert rates[:60] == sorted(rates[:60])
    assert rates[59:] == sorted(rates[59:], reverse=True)
    assert rates[-1] == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("spoken", "said"),
    [
        ("powersdg", "did you mean 'powersgd'?"),
        ("powersgd,ranks=4", "did you mean 'rank'?"),
        ("powersgd,rank", "'rank' is no setting such as key=value"),
        ("powersgd,rank=four", "a whole number goes here"),
        ("powersgd,rank=2,rank=3", "given twice"),
        ("diloco,lr=nan", "a number goes here"),
        ("two_level", "two_level needs node"),
        ("powersgd,rank=0,start=-1", "at least 0 steps"),
        ("nowhere.toml", "cannot be read: No such file"),
    ],
)
def test_a_bad_strategy_is_one_line_and_2(spoken: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--strategy", spoken]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["[when", 'what = {use = "topq", k = 3}', '[wen]\nuse = "every"'])
def test_bad_toml_is_one_line_and_2(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert main(["--strategy", str(path)]) == 2
    assert re.fullmatch(rf"thinwire.train: {path}: .+\n", capfd.readouterr().err)


def test_toml_and_a_recipe_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipes.sparseloco().to_toml())
    assert strategy_from(str(path)) == strategy_from("sparseloco")


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--lr", "x"], ["--lr", "inf"], ["--step", "3"], ["--timeout", "-1"]])
def test_a_bad_flag_is_one_line_and_2(flags: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_other_ranks_say_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["--strategy", "powersdg"]) == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_cannot_be_is_one_line_and_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file" / "below")]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def moment(step: int) -> Moment:
    return Moment(step, 100, 2.5, 2.0, 1024 * step, Report(2, step, (Row("bucket 0", 250_000, step, 5e4 * step, exposed_s=0.1),), 0.0))


@pytest.mark.parametrize("kind", [Lines, LiveLine])
def test_a_moment_is_one_line(kind: type[Lines]) -> None:
    out = io.StringIO()
    show = kind(Console(file=out, force_terminal=kind is LiveLine, width=120))
    for step in range(1, 101):
        show.step(moment(step))
    show.close()
    lines = [line for line in out.getvalue().splitlines() if "step 100/100" in line]
    assert len(lines) == 1
    for part in ("loss 2.500", "51,200 tokens/s", "sent 5.00 MB, 20.0x fewer", "waited 5.0%", "0:00 left"):
        assert part in lines[0]


def test_two_ranks_train_from_the_command_line(tmp_path: Path) -> None:
    ran = [torchrun("--steps", "8", "--seed", "3", "--out", str(tmp_path / folder)) for folder in "ab"]
    told, again = (json.loads((tmp_path / folder / "run.json").read_text()) for folder in "ab")
    for run in ran:
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines()[-1] == "sync.check() passed: all 2 ranks hold the same weights"

    report = told["report"]
    assert f"{report['ratio']:.1f}x" in ran[0].stdout
    assert report["dense_bytes"] == 8 * 4 * told["config"]["parameters"]
    assert report["ratio"] == report["dense_bytes"] / report["sent_bytes"] > 1
    assert told["config"]["world"] == 2
    assert told["config"]["seed"] == 3
    assert len(told["curve"]["train"]) == 8
    nats = told["result"]["validation_nats_per_byte"]
    assert f"{nats:.4f}" in ran[0].stdout
    assert told["result"]["validation_bits_per_byte"] == nats / math.log(2)

    assert (again["curve"], again["report"]["sent_bytes"]) == (told["curve"], report["sent_bytes"]), "the seed decides a run"


def test_what_no_rank_can_do_fails_the_launch() -> None:
    ran = torchrun("--strategy", "two_level,node=3")
    assert ran.returncode != 0
    assert ran.stderr.count("thinwire.train: ") == 1
    assert 'File "' not in ran.stderr.split("thinwire.train: ")[0]
