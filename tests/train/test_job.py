"""The training job: every recipe runs, the command says what it did, and what cannot be is one line and an exit code."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.members import ROOT
from tests.ranks import run_ranks
from thinwire import recipes
from thinwire.engine import Report, Row
from thinwire.errors import DisagreementError, RankLostError
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
    "fedpaq": "fedpaq,period=3",
    "post_local_sgd": "post_local_sgd,start=2,period=2",
    "diloco": "diloco,period=3",
    "streaming_diloco": "streaming_diloco,period=4,fragments=2,tau=1",
    "sparseloco": "sparseloco,period=3",
}


def result(spoken: str, show: Show | None = None, steps: int = 6) -> Result:
    job = Job(strategy_from(spoken), steps=steps, batch=2, model=SMALL, windows=8, sample=10)
    return run(job, show or Show())


def on_a_rank(rank: int) -> list[dict[str, tuple[tuple[float, ...], float, float]]]:
    """Two runs of every recipe: this rank's curve, the validation loss and the ratio."""
    runs = [{name: result(spoken) for name, spoken in SPOKEN.items()} for _ in range(2)]
    return [{name: (done.curve, done.nats, done.end.report.ratio) for name, done in run.items()} for run in runs]


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


def test_every_recipe_runs_on_two_ranks_and_is_decided_by_its_seed() -> None:
    (first, again), (other, _) = run_ranks(2, on_a_rank)
    assert again == first
    for name, (curve, nats, ratio) in first.items():
        assert curve != other[name][0], "each rank reads batches of its own"
        assert nats == other[name][1], "and validates the same weights"
        assert ratio == pytest.approx(1) if name in ("dense", "delayed_update") else ratio > 1.1


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
        ("two_level,node=3", "3"),  # known once the world is
        ("local_sgd,period=2000", "lands nothing from step 960 to step 1920"),
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


@pytest.mark.parametrize(
    "flags", [["--steps", "0"], ["--lr", "x"], ["--lr", "inf"], ["--step", "3"], ["--timeout", "-1"], ["--seed", "-1"]]
)
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


def test_plain_lines_come_every_fifty_steps() -> None:
    out = io.StringIO()
    show = Lines(Console(file=out, width=100))
    for step in range(1, 101):
        show.step(moment(step))
    assert out.getvalue().splitlines() == [
        "step  50/100  loss 2.500  25,600 tokens/s  sent 2.50 MB, 20.0x fewer  wait 5%  0:02",
        "step 100/100  loss 2.500  51,200 tokens/s  sent 5.00 MB, 20.0x fewer  wait 5%  0:00",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_one_live_line(width: int) -> None:
    out = io.StringIO()
    show = LiveLine(Console(file=out, force_terminal=True, width=width))
    show.begin(result("dense").setting)
    for step in range(1, 101):
        show.step(moment(step))
    show.close()
    assert "100/100  loss 2.500  51,200 tokens/s  sent 5.00 MB, 20.0x fewer  wait 5%  0:00" in out.getvalue()
    assert 2 <= out.getvalue().count("20.0x fewer") < 50, "the line is drawn now and then"


def test_two_ranks_train_from_the_command_line(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "thinwire.train"]
    flags = ["--steps", "8", "--seed", "3", "--out", str(tmp_path / "made")]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*launch, *flags], check=False, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "sync.check() passed: all 2 ranks hold the same weights"

    told = json.loads((tmp_path / "made" / "run.json").read_text())
    report = told["report"]
    assert f"{report['ratio']:.1f}x" in ran.stdout
    assert report["dense_bytes"] == 8 * 4 * told["config"]["parameters"]
    assert report["ratio"] == report["dense_bytes"] / report["sent_bytes"] > 1
    assert told["config"]["world"] == 2
    assert told["config"]["seed"] == 3
    assert len(told["curve"]["train"]) == 8
    nats = told["result"]["validation_nats_per_byte"]
    assert f"{nats:.4f}" in ran.stdout
    assert told["result"]["validation_bits_per_byte"] == nats / math.log(2)


@pytest.mark.parametrize(
    ("rank", "error", "code", "said"),
    [
        ("0", RankLostError([1], "rank 1 lost:\nno heartbeat"), 1, "thinwire.train: rank 1 lost:; no heartbeat\n"),
        ("1", RankLostError([0], "rank 0 lost"), 1, "thinwire.train: rank 0 lost\n"),
        ("1", RankLostError([2], "rank 2 lost"), 1, ""),
        ("0", DisagreementError("'embed.weight' differs"), 1, "thinwire.train: 'embed.weight' differs\n"),
        ("0", FloatingPointError("not finite"), 1, "thinwire.train: not finite\n"),
        ("0", InterruptedError("stopped after 3 of 8 steps"), 143, "thinwire.train: stopped after 3 of 8 steps\n"),
        ("0", KeyboardInterrupt(), 130, "thinwire.train: interrupted\n"),
    ],
)
def test_what_ends_a_run_is_told_once(
    rank: str, error: BaseException, code: int, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Result:
        raise error

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("thinwire.train.job.run", fail)
    before = signal.getsignal(signal.SIGTERM)
    assert main([]) == code
    assert capfd.readouterr() == ("", said)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_diverges_says_so() -> None:
    job = Job(recipes.dense(), steps=40, batch=2, model=SMALL, lr=1e30)
    with pytest.raises(FloatingPointError, match="take a lower learning rate than 1e"):
        run(job, Show())


def test_a_run_can_be_stopped() -> None:
    job = Job(recipes.dense(), steps=6, batch=2, model=SMALL)
    with pytest.raises(InterruptedError, match="after 1 of 6 steps"):
        run(job, Show(), stopped=lambda: True)
