"""`thinwire train` as an operator runs it: launched, stopped, killed, stalled, and asked for what
cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.warm import FAMILY, WarmPopen
from thinwire.cli.main import main

TINY = [
    "--model=gpt2-nano,n_layer=1,n_head=2,n_embd=16",
    *(
        "--context=16",
        "--batch=2",
        "--windows=8",
        "--sample=8",
        "--timeout=8",
        "--strategy=fedpaq,period=4",
    ),
]
MARK = f"THINWIRE_TEST={uuid.uuid4().hex}".encode()
ENV = (
    os.environ
    | dict([MARK.decode().split("=")])
    | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
)
FORKS = tempfile.TemporaryDirectory(prefix="thinwire-forks-")
Process: TypeAlias = "subprocess.Popen[str] | WarmPopen"


def cold(*flags: str) -> subprocess.Popen[str]:
    """Start the command as an operator does, which takes seconds."""
    command = [sys.executable, "-m", "thinwire", "train", *TINY, *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )


def start(*flags: str) -> WarmPopen:
    """Start the command, and its workers, in processes that have torch loaded."""
    command = [sys.executable, "-m", "thinwire", "train", *TINY, *flags]
    return WarmPopen(command, ENV | {FAMILY: FORKS.name})


def ended(process: Process, within_s: float = 120) -> tuple[int, str, str]:
    """Exit code, output and errors; and proof that none of its processes is left."""
    out, err = process.communicate(timeout=within_s)
    for _ in range(50):
        if not family():
            return process.returncode, out, err
        time.sleep(0.1)
    raise AssertionError(f"processes are left: {family()}")


def family() -> dict[int, list[bytes]]:
    """The living processes that this test has started, launchers and workers (in sessions of their
    own), with their variables."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")  # a zombie has none
                fork = Path(FORKS.name, entry.name)
                if variables != [b""] and fork.exists():
                    variables = fork.read_bytes().split(b"\0")
            except OSError:
                continue
            if MARK in variables:
                found[int(entry.name)] = variables
    return found


def workers() -> dict[int, int]:
    """The process of each rank."""
    return {
        int(line.partition(b"=")[2]): pid
        for pid, variables in family().items()
        for line in variables
        if line.startswith(b"RANK=")
    }


def until_saved(out: Path, process: Process) -> None:
    """Until the run has its first checkpoint."""
    for _ in range(900):
        if list((out / "checkpoints").glob("host-*/step-*")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no checkpoint in 90 s")


def memory() -> set[str]:
    """Shared memory that outlives whoever made it: torch puts the maker's process into the name."""
    shared = Path("/dev/shm").iterdir() if Path("/dev/shm").exists() else ()
    return {
        path.name
        for path in shared
        if not Path("/proc", path.name.split("_")[1] if "_" in path.name else "").is_dir()
    }


def test_two_workers_train_and_say_where_things_are(tmp_path: Path) -> None:
    out, before = tmp_path / "out", memory()
    code, told, progress = ended(
        cold("--workers=2", "--steps=40", "--save-every=16", f"--out={out}", "--json")
    )
    assert code == 0, progress
    figures: dict[str, Any] = json.loads(told)
    assert "validation" in progress
    assert "\r" not in progress
    result = figures["result"]
    assert figures["world"] == 2
    assert result["steps"] == 40
    assert result["dense_bytes"] == 2 * 40 * 4 * figures["parameters"]
    assert result["ratio"] == result["dense_bytes"] / sum(result["sent_bytes"]) > 10
    assert (
        0.99 < sum(result["time_shares"][name] for name in ("compute", "exposed", "input")) < 1.01
    )
    assert len(figures["curve"]["train"]) == 40
    for place in figures["places"].values():
        assert Path(place).exists(), place
    assert json.loads((out / "run.json").read_text()) == figures
    assert (out / "plot.svg").read_text().lstrip().startswith("<?xml")
    assert any((out / "tensorboard").iterdir())
    assert memory() <= before

    code, told, progress = ended(start("--workers=2", "--steps=40", f"--out={out}"))
    assert code == 2
    assert told == ""
    assert progress.count("\n") == 1
    assert "a run is there already; --resume continues it" in progress


def test_sigterm_saves_and_resume_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--workers=2", "--steps=100000", "--save-every=20", f"--out={out}")
    until_saved(out, process)
    process.send_signal(signal.SIGTERM)
    code, _, progress = ended(process)
    assert code == 143, progress
    assert "stopped as asked after" in progress
    saved = max(
        int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("host-*/step-*")
    )
    assert f"stopped as asked after {saved} of 100000 steps" in progress
    steps = saved + 8
    code, told, progress = ended(
        start("--workers=2", f"--steps={steps}", f"--out={out}", "--resume", "--json")
    )
    assert code == 0, progress
    assert json.loads(told)["result"]["resumed_at"] == [saved]


@pytest.mark.long
def test_a_killed_worker_is_named_and_restarts_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(
        "--workers=2", "--steps=400", "--save-every=20", f"--out={out}", "--json", "--restarts=1"
    )
    until_saved(out, process)
    os.kill(workers()[1], signal.SIGKILL)
    code, told, progress = ended(process)
    assert code == 0, progress
    assert "rank 1 lost" in progress
    assert "going on from step" in progress
    assert json.loads(told)["result"]["resumed_at"]


@pytest.mark.long
def test_shards_are_killed_go_on_and_export_the_whole_model(tmp_path: Path) -> None:
    flags = ["--workers=4", "--steps=80", "--save-every=20", "--strategy=dense", "--json"]
    sharded = [*flags, "--parallel=fsdp", "--shards=2", f"--out={tmp_path / 'shards'}"]
    code, told, progress = ended(start(*flags, f"--out={tmp_path / 'whole'}"))
    assert code == 0, progress
    whole = json.loads(told)
    process = start(*sharded, "--restarts=1")
    until_saved(tmp_path / "shards", process)
    os.kill(workers()[3], signal.SIGKILL)
    code, told, progress = ended(process)
    assert code == 0, progress
    # The launcher may end the others before they have found out who is lost.
    assert "starting this machine's workers again" in progress
    assert "going on from step" in progress
    ours = json.loads(told)
    assert ours["result"]["resumed_at"]
    assert (ours["shards"], ours["config"]["parallel"]) == (2, "fsdp")
    assert ours["curve"]["train"] == pytest.approx(whole["curve"]["train"], abs=1e-3)
    # transformers reads what was written, and it computes as the whole run's
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(run["places"]["model"]) for run in (ours, whole)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert (one - other).abs().max() < 1e-3


@pytest.mark.long
def test_a_stopped_worker_is_named_and_the_run_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--workers=2", "--steps=100000", "--save-every=20", f"--out={out}", "--json")
    until_saved(out, process)
    os.kill(workers()[1], signal.SIGSTOP)
    code, told, progress = ended(process, within_s=60)
    assert code == 1, progress
    assert "rank 1 lost: no heartbeat" in json.loads(told)["error"]
    assert "rank 1 lost: no heartbeat" in progress


def test_without_its_launcher_no_worker_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--workers=2", "--steps=100000", "--save-every=20", f"--out={out}")
    until_saved(out, process)
    process.kill()
    ended(process)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strategy=powersdg"], "did you mean 'powersgd'"),
        (
            ["--strategy=powersgd,rank=four"],
            "powersgd: setting 'rank': expected an integer, got 'four'",
        ),
        (["--model=gpt3-nano"], "no model is called 'gpt3-nano'"),
        (["--model=nowhere/model"], "not there"),
        (["--data=nowhere.txt"], "nowhere.txt"),
        (["--data=/dev/null"], "/dev/null"),
        (["--steps=0"], "at least 1"),
        (["--config=nowhere.toml"], "No such file"),
        (["--device=cuda"], "torch sees 0 GPUs"),
    ],
)
def test_what_cannot_be_is_one_line(
    flags: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for mode in ([], ["--json"]):
        try:
            code = main(
                ["train", *TINY[:-1], f"--out={tmp_path / 'out'}", "--overwrite", *mode, *flags]
            )
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
        assert out == "" if not mode else said in json.loads(out)["error"]


def test_data_that_cannot_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"text\0more" * 100)
    (tmp_path / "tiny.txt").write_text("to be or not to be, that is the question.\n\n" * 2)
    for name in ("empty", "binary", "tiny"):
        assert (
            main(
                [
                    "train",
                    *TINY,
                    "--steps=4",
                    f"--data={tmp_path / name}.txt",
                    f"--out={tmp_path / 'out'}",
                    "--overwrite",
                ]
            )
            == 2
        ), name
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("thinwire train: "), name


def test_more_workers_than_cores_work_and_warn(tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    code, _, progress = ended(
        start(f"--workers={cores + 1}", "--steps=4", f"--out={tmp_path / 'out'}")
    )
    assert code == 0, progress
    assert f"warning: {cores + 1} workers share {cores} cores" in progress


@pytest.mark.long
def test_torchrun_starts_it_too(tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "thinwire",
        "train",
    ]
    flags = [*TINY, "--steps=8", f"--out={tmp_path / 'out'}"]
    ran = subprocess.run([*launch, *flags], check=False, env=ENV, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (
        ran.stderr.count(
            "torchrun's c10d rendezvous runs what strangers write into its port as code"
        )
        == 1
    )
    assert "all 2 ranks hold the same weights" in ran.stdout
