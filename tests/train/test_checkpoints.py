"""A checkpoint is whole or not there: kills, full disks and damage never harm the last good one."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from thinwire.errors import CheckpointError
from thinwire.train.checkpoints import Checkpoints, host_groups


def every_name(_: str) -> bool:
    return True


def alone(folder: Path, keep: int = 2, said: list[str] | None = None) -> Checkpoints:
    return Checkpoints(folder, "ant", None, True, keep, (said if said is not None else []).append)


def state(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1000,), float(step)), "b.c": torch.tensor(step)}


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.failure is None
    assert names(checkpoints) == ["step-00000020", "step-00000030"]
    read = checkpoints.read(30, every_name)
    assert all(torch.equal(read[name], tensor) for name, tensor in state(30).items())
    assert set(checkpoints.read(30, lambda name: name == "a")) == {"a"}


def test_saved_again_after_a_resume(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    for value in (1, 2):
        checkpoints.save(10, state(value))
    checkpoints.wait()
    assert checkpoints.read(10, every_name)["b.c"] == 2
    assert names(checkpoints) == ["step-00000010"]


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    checkpoints.save(10, state(10))
    checkpoints.wait()
    (checkpoints.folder / ".partial-00000020").mkdir()
    (checkpoints.folder / ".pruned-00000005").mkdir()
    (checkpoints.folder / ".aside-step-00000010").mkdir()
    again = alone(tmp_path)
    assert again.steps() == [10]
    assert names(again) == ["step-00000010"]


def _on_a_full_disk(rank: int, folder: Path) -> list[str]:
    said: list[str] = []
    checkpoints = Checkpoints(folder, "ant", host_groups([0, 0], None), rank == 0, 2, said.append)
    checkpoints.save(10, {"a": torch.ones(10), f"rank{rank}": torch.ones(5)})
    checkpoints.wait()
    assert checkpoints.failure is None
    if rank == 1:  # the disk of one rank only: all must hear of it
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    checkpoints.save(20, {"a": torch.ones(10), f"rank{rank}": torch.ones(5000)})
    checkpoints.wait()
    assert checkpoints.failure is not None
    dist.barrier()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(30, {"a": torch.ones(10), f"rank{rank}": torch.ones(5000)})
    checkpoints.wait()
    assert checkpoints.failure is None
    return said


def test_a_full_disk_is_told_and_the_last_good_one_stays(tmp_path: Path) -> None:
    said, silent = run_ranks(2, _on_a_full_disk, tmp_path)
    assert len(said) == 1
    assert "the checkpoint of step 20 was not saved" in said[0]
    assert "MB are free in" in said[0]
    assert "The last good one is of step 10" in said[0]
    assert silent == []
    assert alone(tmp_path).steps() == [10, 30]
    assert set(alone(tmp_path).read(10, every_name)) == {"a", "rank0", "rank1"}


def _beside_one_that_dies(rank: int, folder: Path) -> str | None:
    checkpoints = Checkpoints(folder, "ant", host_groups([0, 0], None), rank == 0, 2, lambda _: None)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save(10, {"a": torch.ones(10)})
    checkpoints.wait()
    return checkpoints.failure


def test_a_rank_that_is_lost_meanwhile_is_told_and_no_disk_is_blamed(tmp_path: Path) -> None:
    failure, died = run_ranks(2, _beside_one_that_dies, tmp_path)
    assert died == -signal.SIGKILL
    assert failure.startswith("the checkpoint of step 10 was not saved: another rank of this host was lost meanwhile")
    assert "are free in" not in failure


@pytest.mark.parametrize("victim", [".metadata", "__0_0.distcp"])
def test_a_damaged_one_is_named(tmp_path: Path, victim: str) -> None:
    checkpoints = alone(tmp_path)
    checkpoints.save(10, state(10))
    checkpoints.wait()
    path = next(checkpoints.path(10).glob(victim))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(CheckpointError, match="step-00000010 cannot be read"):
        checkpoints.read(10, every_name)


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    checkpoints.save(10, state(10))
    checkpoints.wait()
    checkpoints.path(10).rename(checkpoints.folder / ".aside-step-00000010")
    assert alone(tmp_path).steps() == [10]


def test_what_another_host_lacks_stays(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path, keep=1)
    for step, common in ((10, None), (20, 10), (30, 10), (40, 30)):
        checkpoints.save(step, state(step), common)
    checkpoints.wait()
    assert checkpoints.steps() == [30, 40]
    checkpoints.forget_after(30)
    assert checkpoints.steps() == [30]
