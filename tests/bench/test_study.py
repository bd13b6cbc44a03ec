"""A whole bench, small: curves, times, proof, resume, failures; what the worker measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.possible import why_not
from tests.warm import python_elsewhere
from thinwire.bench.contestants import FULL, Contestant, chosen, ours
from thinwire.bench.networks import swept
from thinwire.bench.records import RECORDS, for_page, read
from thinwire.bench.studies import Study
from thinwire.bench.study import Bench
from thinwire.cli.bench import left_out
from thinwire.errors import BenchError
from thinwire.recipes import dense, fedpaq

MODEL = {"vocab": 256, "context": 16, "layers": 1, "heads": 2, "width": 16}
(SLOW,) = swept(2, (1e7,), (0.01,))
FIELDS: dict[str, Any] = {"model": MODEL, "batch": 2, "windows": 8, "timeout": 60.0}
STUDY = Study(
    world=2,
    contestants=(
        ours("dense", dense()),
        ours("fedpaq", fedpaq(period=5), 5, timed={"attach": {"lanes": 2}}),
        Contestant("DDP", "ddp", {"hook": "none"}, same_as="dense"),
        Contestant("no such hook", "ddp", {"hook": "carrier pigeon"}),
    ),
    networks=(SLOW,),
    seeds=2,
    curve=FIELDS | {"steps": 20, "stop": 20, "validate_every": 5, "warmup": 5},
    timing=FIELDS | {"steps": 100, "warm": 2, "few": 2},
    timed=4,
    rounds=1,
    proof=("fedpaq", SLOW),
)


needs_lab = pytest.mark.skipif(bool(why := why_not()), reason=why)


@pytest.fixture(scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers that have torch loaded when they start: there are forty of them."""
    python = python_elsewhere(tmp_path_factory.mktemp("warm"), "net")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinwire.bench.study.python_for", lambda *_: python)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, _warm: None) -> Bench:
    made = Bench(
        STUDY, tmp_path_factory.mktemp("bench"), tmp_path_factory.mktemp("rivals"), lambda _: None
    )
    made.run("thinwire bench")
    return made


def found(bench: Bench, kind: str, name: str) -> list[dict[str, Any]]:
    return [each for each in bench.records if each["kind"] == kind and each["name"] == name]


@pytest.mark.long
@needs_lab
def test_every_contestant_has_its_records(bench: Bench) -> None:
    for contestant in STUDY.contestants:
        assert [each["seed"] for each in found(bench, "curve", contestant.name)] == [0, 1]
        assert [each["round"] for each in found(bench, "time", contestant.name)] == [0]


@pytest.mark.long
@needs_lab
def test_what_fails_is_told_with_its_reason(bench: Bench) -> None:
    failed = [each for each in bench.records if each.get("error")]
    assert {each["name"] for each in failed} == {"no such hook"}
    assert all("no hook 'carrier pigeon'" in each["error"] for each in failed)


@pytest.mark.long
@needs_lab
def test_our_dense_is_ddp_bit_for_bit_and_other_seeds_are_taken_from_it(bench: Bench) -> None:
    dense_curves, ddp = found(bench, "curve", "dense"), found(bench, "curve", "DDP")
    assert ddp[0]["validation"] == dense_curves[0]["validation"]
    assert ddp[1]["validation"] == dense_curves[1]["validation"] != dense_curves[0]["validation"]
    assert "shared" not in ddp[0]
    assert ddp[1]["shared"] == "dense"


@pytest.mark.long
@needs_lab
def test_losses_do_not_depend_on_the_link(bench: Bench) -> None:
    [proof] = [each for each in for_page(bench.records) if each["kind"] == "whole"]
    assert proof["same_losses"] is True
    assert proof["validation"] == found(bench, "curve", "fedpaq")[0]["validation"]
    assert 0.2 < proof["predicted_s"] / proof["measured_s"] < 5
    assert [step for step, _, _ in proof["points"]] == [5, 10, 15, 20]
    assert 1 < proof["burst_bytes"] / (5 * proof["bytes_per_step"]) < 1.8, (
        "one step in five talks; headers and statuses count, too"
    )


@pytest.mark.long
@needs_lab
def test_times_are_of_whole_periods_with_bytes_from_meter_and_kernel(bench: Bench) -> None:
    for name, steps in (("dense", 4), ("fedpaq", 5), ("DDP", 4)):
        for each in found(bench, "time", name):
            assert len(each["step_s"]) == steps
            assert each["kernel_bytes"] > 1000
            assert 0 < each["max_late_ms"] < 1000
            if name != "DDP":
                assert (
                    each["metered_bytes"]
                    < each["kernel_bytes"]
                    < each["metered_bytes"] * 1.5 + 3000
                )
                parts = sum(each[key] for key in ("compute_s", "encode_s", "exposed_s", "input_s"))
                assert parts == pytest.approx(sum(each["step_s"]) / steps, rel=0.5)
    assert (
        found(bench, "time", "fedpaq")[0]["kernel_bytes"]
        < found(bench, "time", "dense")[0]["kernel_bytes"] / 4
    )
    slow = sum(found(bench, "time", "dense")[0]["step_s"])
    assert slow > sum(found(bench, "time", "fedpaq")[0]["step_s"])


def test_curves_are_shown_of_the_seeds_that_all_have() -> None:
    curve = {"kind": "curve", "contestant": "thinwire", "validation": [[10, 2.0]], "error": None}
    made = [
        curve | {"name": name, "seed": seed}
        for name, seed in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2))
    ]
    failed = curve | {"name": "a", "seed": 2, "validation": [], "error": "diverged"}
    assert for_page(made) == made[:4]
    assert for_page([*made, failed]) == [*made, failed], "who failed has had its turn"
    assert "1 curve of seeds that not every contestant has yet (2)" in left_out(made)
    assert left_out([*made, failed]) == ""


def test_who_talks_seldom_is_timed_after_two_rounds() -> None:
    assert [STUDY.warm(each) for each in STUDY.contestants[:2]] == [2, 10]


@pytest.mark.long
@needs_lab
def test_a_step_of_the_rank_that_is_done_last_is_no_shorter_than_the_mean(bench: Bench) -> None:
    (record,) = found(bench, "time", "fedpaq")
    mean = sum(record["step_s"]) / len(record["step_s"])
    assert mean - 1e-5 <= record["slowest_s"] <= STUDY.world * mean


@pytest.mark.long
@needs_lab
def test_the_proof_is_timed_as_it_is_run_whole(bench: Bench) -> None:
    assert found(bench, "time", "fedpaq")[0]["settings"]["attach"] == {"lanes": 2}
    assert [
        found(bench, kind, "fedpaq")[0]["settings"]["attach"] for kind in ("small", "whole")
    ] == [{}, {}]


@pytest.mark.long
@needs_lab
@pytest.mark.usefixtures("_warm")
def test_a_study_goes_on_where_it_stopped(bench: Bench, tmp_path: Path) -> None:
    path = bench.folder / RECORDS
    lines = path.read_text().splitlines()
    gone = next(i for i, line in enumerate(lines) if json.loads(line).get("kind") == "whole")
    (tmp_path / RECORDS).write_text(
        "\n".join(lines[:gone]) + "\n" + lines[gone][:50]
    )  # cut off in the middle of a line
    measured: list[str] = []
    again = Bench(STUDY, tmp_path, tmp_path, measured.append)
    again.run("thinwire bench")
    assert len(measured) == 1
    assert measured[0].startswith("whole")
    assert len([each for each in read(tmp_path / RECORDS) if each["kind"] == "whole"]) == 1


@pytest.mark.long
@needs_lab
@pytest.mark.usefixtures("_warm")
def test_slow_steps_are_few(tmp_path: Path) -> None:
    study = replace(
        STUDY,
        contestants=STUDY.contestants[:1],
        timing=FIELDS | {"steps": 99, "warm": 1, "few": 2, "slow_s": 0.0},
    )
    made = Bench(study, tmp_path, tmp_path, lambda _: None)
    made.times()
    assert len(found(made, "time", "dense")[0]["step_s"]) == 2


@pytest.mark.long
@needs_lab
@pytest.mark.usefixtures("_warm")
def test_settings_for_slow_links_and_for_a_larger_model(tmp_path: Path) -> None:
    own = ours("dense", dense(), timed={"attach": {"lanes": 2}}, slow={"attach": {"lanes": 3}})
    networks = (SLOW, *swept(2, (1e9,), (0.0,)))
    made = Bench(
        replace(STUDY, contestants=(own,), networks=networks, seeds=1),
        tmp_path,
        tmp_path,
        lambda _: None,
    )
    made.run("thinwire bench", ("curves", "times"))
    assert found(made, "curve", "dense")[0]["settings"]["attach"] == {}
    assert [each["settings"]["attach"]["lanes"] for each in found(made, "time", "dense")] == [3, 2]


def test_an_unknown_contestant() -> None:
    with pytest.raises(
        BenchError, match=r"no contestant is called 'DPD'; did you mean 'DDP'\? There are: "
    ):
        chosen(["DPD"], FULL)


def test_a_damaged_file_of_records(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text('{"kind": "curve"\n{}\n')
    with pytest.raises(BenchError, match="line 1: no record"):
        read(tmp_path / RECORDS)


def test_contestants_are_told_without_measuring() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "thinwire", "bench", "--list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = json.loads(ran.stdout)
    assert (
        len({each["name"] for each in told["contestants"]}) == len(told["contestants"]) == len(FULL)
    )
    assert "10 Mb/s, 50 ms" in told["links"]
