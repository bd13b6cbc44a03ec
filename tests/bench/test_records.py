"""What a bench records: failures, none of which ends the study but the lab's own; and all that it
takes to make a record again."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence, headline
from tests.bench.test_study import FIELDS, SLOW, needs_lab
from tests.bench.test_study import STUDY as SMALL
from tests.members import ROOT
from thinwire.bench import running
from thinwire.bench import study as module
from thinwire.bench.contestants import FULL, Contestant
from thinwire.bench.job import Job
from thinwire.bench.networks import NamedNetwork, no_limits
from thinwire.bench.records import RECORDS, for_page, read, write
from thinwire.bench.report import bench_page, summary
from thinwire.bench.running import limit_s
from thinwire.bench.studies import STUDY as PUBLISHED
from thinwire.bench.studies import Study
from thinwire.bench.study import Bench
from thinwire.errors import BenchError, LabError
from thinwire.strategy import Strategy

STUDY = replace(
    SMALL,
    contestants=(
        Contestant("DDP", "ddp", {"hook": "none"}),
        Contestant("DDP, fp16 hook", "ddp", {"hook": "fp16"}),
    ),
    seeds=1,
    proof=("DDP", SLOW),
)
Answer = Callable[[Job], list[dict[str, Any]]]


def told(job: Job, *losses: float) -> list[dict[str, Any]]:
    """What two ranks tell of a job, whose validations had these losses."""
    validation = list(zip(range(5, 21, 5), losses or (4.0, 3.0, 2.0, 1.0), strict=True))
    rank = {
        "warm": job.warm,
        "seconds": [0.1] * job.stop,
        "losses": [loss for _, loss in validation],
        "validation": validation,
    }
    return [
        rank
        | {
            "input_s": 0.0,
            "sent_bytes": 1000 * job.stop,
            "burst_bytes": 1000,
            "split": {},
            "peak_bytes": 1000,
            "setup_s": 1.0,
        }
    ] * 2


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bench]:
    """Makes a bench, always in the same folder, whose jobs are answered by a function."""
    monkeypatch.setattr(NamedNetwork, "lab", lambda self: nullcontext())  # noqa: ARG005
    texts = tmp_path_factory.mktemp("text")

    def made(answer: Answer, study: Study = STUDY, retry: bool = False) -> Bench:
        monkeypatch.setattr(module, "ran", lambda lab, job, python: (answer(job), None))  # noqa: ARG005
        return Bench(study, tmp_path, texts, lambda _: None, retry)

    return made


def fails(job: Job) -> Any:
    raise BenchError(f"host0: no {job.contestant} today")


def wild(job: Job) -> list[dict[str, Any]]:
    """The fp16 hook and all whole runs diverge."""
    return told(
        job, *((4.0, math.nan, math.inf, math.nan) if job.settings.get("hook") == "fp16" else ())
    )


def test_a_contestant_that_diverges_is_recorded_and_the_study_goes_on(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    made = bench(wild, replace(STUDY, proof=("DDP, fp16 hook", SLOW)))
    made.run("thinwire bench")
    assert {each["name"] for each in made.records if each["kind"] == "time"} == {
        "DDP",
        "DDP, fp16 hook",
    }
    kept = [each for each in read(tmp_path / RECORDS) if each.get("error")]
    assert [(each["kind"], each["name"], each["error"]) for each in kept] == [
        ("curve", "DDP, fp16 hook", "the loss was no number at step 10"),
        ("whole", "DDP, fp16 hook", "the loss was no number at step 10"),
    ]
    assert kept[0]["validation"] == [[5, 4.0], [10, None], [15, None], [20, None]]
    again = bench(fails, replace(STUDY, proof=("DDP, fp16 hook", SLOW)))
    again.run("thinwire bench")
    assert again.records == read(tmp_path / RECORDS), "nothing is measured twice"


def test_a_record_that_diverged_is_told_by_all_that_read_it(bench: Callable[..., Bench]) -> None:
    made = bench(wild, replace(STUDY, proof=("DDP, fp16 hook", SLOW)))
    records = for_page(made.run("thinwire bench"))
    assert "whole run: <code>the loss was no number at step 10" in bench_page(records)
    row = next(row for row in summary(records) if row["name"] == "DDP, fp16 hook")
    assert (row["final_nats"], row["errors"]) == (
        None,
        ["seed 0: the loss was no number at step 10"],
    )
    diverged = [each for each in made.records if each.get("error")]
    assert evidence.told(diverged) == {}
    assert evidence.claims(diverged) == evidence.claims([])
    known = [
        record
        for name in ("bench", "headline")
        for record in read(ROOT / "benchmarks" / "results" / name / RECORDS)
    ]
    assert headline.found(
        [*known, *(diverged[0] | {"seed": seed, "parameters": 480096} for seed in range(3))]
    ) == headline.found(known)


def test_only_what_is_measured_again_is_forgotten(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    bench(fails, replace(STUDY, seeds=2)).run("thinwire bench", ("curves",))
    before = [each for each in read(tmp_path / RECORDS) if each.get("error")]
    assert len(before) == 4
    bench(told, replace(STUDY, contestants=STUDY.contestants[:1]), retry=True).run(
        "thinwire bench", ("times",)
    )
    assert [each for each in read(tmp_path / RECORDS) if each.get("error")] == before
    again = bench(told, replace(STUDY, contestants=STUDY.contestants[:1]), retry=True)
    again.run("thinwire bench", ("curves",))
    assert again.records == read(tmp_path / RECORDS)
    curves = [
        (each["name"], each["seed"], not each["error"])
        for each in again.records
        if each["kind"] == "curve"
    ]
    assert sorted(curves) == [
        ("DDP", 0, True),
        ("DDP", 1, False),
        ("DDP, fp16 hook", 0, False),
        ("DDP, fp16 hook", 1, False),
    ]


def test_without_retry_a_failure_stays(bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench(fails).run("thinwire bench")
    before = (tmp_path / RECORDS).read_text()
    bench(told).run("thinwire bench")
    assert (tmp_path / RECORDS).read_text() == before


def test_a_full_disk_is_the_error_of_whom_it_kept_out(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "python_for", full)
    made = bench(told)
    made.run("thinwire bench", ("curves",))
    assert {each["error"] for each in made.records if "key" in each} == {
        "cannot be installed: [Errno 28] No space left on device"
    }


def test_a_lab_that_is_gone_ends_the_study_and_is_nobodys_failure(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    def gone(job: Job) -> Any:
        if job.settings["hook"] == "fp16":
            raise LabError("the lab has been ended from outside")
        return told(job)

    with pytest.raises(
        LabError,
        match=(
            r"the lab failed while DDP, fp16 hook ran: .* from outside; the same command goes on "
            r"from here"
        ),
    ):
        bench(gone).run("thinwire bench")
    assert [
        (each["name"], each["error"]) for each in read(tmp_path / RECORDS) if "key" in each
    ] == [("DDP", None)]
    bench(told).run("thinwire bench")
    assert not [each for each in read(tmp_path / RECORDS) if each.get("error")]


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """An interpreter that runs nothing, and takes longer than any test waits."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho waiting for the others\nexec sleep 5\n")
    path.chmod(0o755)
    return path


@needs_lab
@pytest.mark.parametrize("whole", [True, False], ids=["the lab", "a host"])
def test_what_ends_a_lab_is_no_contestants_error(waiting: Path, whole: bool) -> None:
    with no_limits(2).lab() as lab:

        def end() -> None:
            if whole:
                os.kill(lab._keeper.pid, signal.SIGKILL)
            else:
                lab.call(None, ["kill", "-9", str(lab.pids["host1"])])

        ender = threading.Timer(1.0, end)
        ender.start()
        with pytest.raises(LabError, match="the lab"):
            module.ran(lab, Job("ddp", {}, FIELDS["model"], "", ""), waiting)
        ender.join()


@needs_lab
def test_who_hangs_is_stopped_after_what_the_steps_may_take(
    waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        limit_s(PUBLISHED.job(FULL[0], 0, PUBLISHED.curve, "", "")) > 1.5 * 4003
    )  # what DeepSpeed's curve has taken
    assert limit_s(replace(Job("ddp", {}, {}, "", ""), stop=18)) < 2000
    monkeypatch.setattr(running, "BEGIN_S", -1.0)
    job = Job("ddp", {}, FIELDS["model"], "", "", stop=1)
    with (
        no_limits(2).lab() as lab,
        pytest.raises(
            BenchError,
            match=(
                r"not done in 1 s, the limit for 1 steps; host0's last line: waiting for the "
                r"others"
            ),
        ),
    ):
        module.ran(lab, job, waiting)


MACHINE = {
    "thinwire": "0.1.0",
    "torch": "2.9.1",
    "python": "3.11.9",
    "cpu": "one",
    "cores": 2,
    "kernel": "6.1",
}


def test_a_record_tells_its_job_its_libraries_and_its_environment(
    bench: Callable[..., Bench],
) -> None:
    rival = Contestant(
        "DeepSpeed ZeRO-1",
        "deepspeed_zero",
        {"stage": 1, "hook": "none"},
        job={"betas": (0.2, 0.95)},
    )
    made = bench(told, replace(STUDY, contestants=(rival,)))
    made._pythons["deepspeed_zero"] = Path("python")
    environment, *records = made.run("thinwire bench", ("curves", "times"))
    curve, time = records
    assert {each["environment"] for each in records} == {environment["id"]}
    assert "deepspeed==0.19.8" in curve["libraries"]
    assert (
        curve["job"].items()
        >= {
            "batch": 2,
            "betas": [0.2, 0.95],
            "warmup": 5,
            "matmul": "highest",
            "steps": 20,
            "seed": 0,
        }.items()
    )
    assert (time["job"]["warm"], time["job"]["steps"]) == (2, 100)
    assert not {"train", "held", "settings", "contestant"} & curve["job"].keys()


def test_a_curve_that_is_shared_tells_the_job_it_was_made_with(bench: Callable[..., Bench]) -> None:
    shares = replace(STUDY.contestants[1], same_as="DDP")
    made = bench(told, replace(STUDY, contestants=(STUDY.contestants[0], shares), seeds=2))
    made.run("thinwire bench", ("curves",))
    (shared,) = [each for each in made.records if each.get("shared")]
    assert (shared["seed"], shared["job"]["seed"]) == (1, 1)


def test_an_environment_is_told_whenever_it_is_another_than_before(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, kernel in (("curves", "6.1"), ("curves", "6.1"), ("times", "6.2"), ("proof", "6.1")):
        monkeypatch.setattr(
            module, "environment", lambda kernel=kernel: MACHINE | {"kernel": kernel}
        )
        made = bench(told)
        made.run("thinwire bench", (part,))
    environments = {
        each["id"]: each["kernel"] for each in made.records if each["kind"] == "environment"
    }
    assert [each["kernel"] for each in made.records if each["kind"] == "environment"] == [
        "6.1",
        "6.2",
        "6.1",
    ]
    measured = {
        each["kind"]: environments[each["environment"]] for each in made.records if "key" in each
    }
    assert measured == {"curve": "6.1", "time": "6.2", "small": "6.1", "whole": "6.1"}


def test_the_page_tells_how_to_make_each_row_again(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "environment", lambda: MACHINE)
    bench(told, replace(STUDY, contestants=STUDY.contestants[:1])).run("thinwire bench --only DDP")
    records = for_page(bench(told).run("thinwire bench --add fp16"))
    page = bench_page(records)
    _, first, second = page.rpartition("<h2>Reproduce</h2>")[2].rsplit("<details>", 2)
    assert "thinwire bench --only DDP" in first
    assert "--add fp16" not in first
    assert "thinwire bench --add fp16" in second
    assert all(
        word in first
        for word in (
            "&quot;betas&quot;",
            "&quot;warmup&quot;: 5",
            "&quot;matmul&quot;",
            "&quot;environment&quot;",
        )
    )
    assert "come from several environments" not in page, "another command is no other machine"
    old = [
        {
            key: value
            for key, value in each.items()
            if key not in ("job", "libraries", "environment", "id")
        }
        for each in records
    ]
    assert "Reproduce" in bench_page(old)


def test_every_committed_record_is_known_again(bench: Callable[..., Bench], tmp_path: Path) -> None:
    """A field that a job or a record is given later must not have days of measuring done anew."""
    before = read(ROOT / "benchmarks" / "results" / "bench" / RECORDS)
    write(tmp_path / RECORDS, before)
    made = bench(fails, PUBLISHED)
    made._pythons = {each.module: Path("python") for each in PUBLISHED.contestants}
    made.run("thinwire bench")
    known = [_what(each) for each in before if "key" in each]
    anew = [_what(each) for each in made.records if "key" in each and each not in before]
    assert len(known) > 250
    assert not [
        each for each in anew if each in known and each[1] != "torchft DiLoCo H=30"
    ]  # at 10 Mb/s without two rounds to warm up


def _what(record: dict[str, Any]) -> tuple[Any, ...]:
    settings = dict(record["settings"])
    if "strategy" in settings:
        settings["strategy"] = Strategy.from_toml(settings["strategy"]).short()
    return (
        record["kind"],
        record["name"],
        record.get("seed"),
        record.get("round"),
        record.get("link"),
        settings,
    )


def test_bytes_of_a_curve_are_the_meters_where_there_is_one(bench: Callable[..., Bench]) -> None:
    """What a fragment sends while others validate would be missing from the kernel's."""
    made = bench(
        lambda job: [rank | {"split": {"metered_bytes": 2000.0 * job.stop}} for rank in told(job)]
    )
    made.run("thinwire bench", ("curves",))
    assert {each["bytes_per_step"] for each in made.records if each["kind"] == "curve"} == {2000.0}
    made = bench(told, replace(STUDY, seeds=2))
    made.run("thinwire bench", ("curves",))
    assert {
        each["bytes_per_step"] for each in made.records if each["kind"] == "curve" and each["seed"]
    } == {1000.0}
