"""A checkpoint is whole or not there: kills, full disks and damage never harm the last good one."""

from __future__ import annotations

import os
import pickle
import resource
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.planted import Planted
from tests.ranks import run_ranks
from thinwire.train import checkpoints as module
from thinwire.train.checkpoints import Checkpoints, Member
from thinwire.train.host_ranks import host_groups


def alone(
    folder: Path, keep: int = 2, host: str = "ant", rank: int = 0, run: str = "x"
) -> Checkpoints:
    return Checkpoints(folder, Member(host, rank=rank, world=2, run=run), keep, lambda _: None)


def of_rank(
    rank: int, folder: Path, failures: list[str], timeout: timedelta | None = None
) -> Checkpoints:
    """One of two ranks of a host."""
    group = host_groups([0, 0], timeout)
    return Checkpoints(folder, Member("ant", rank == 0, group, rank, 2, "x"), 2, failures.append)


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
    read = checkpoints.read(30).tensors
    assert set(read) == set(state(30))
    assert all(torch.equal(read[name], tensor) for name, tensor in state(30).items())


def test_saved_again_after_a_resume(tmp_path: Path) -> None:
    checkpoints = alone(tmp_path)
    for value in (1, 2):
        checkpoints.save(10, state(value))
    checkpoints.wait()
    assert checkpoints.read(10).tensors["b.c"] == 2
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
    checkpoints = of_rank(rank, folder, said)
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
    assert set(alone(tmp_path).read(10).tensors) == {"a", "rank0", "rank1"}


def _beside_one_that_dies(rank: int, folder: Path) -> str | None:
    checkpoints = of_rank(rank, folder, [])
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save(10, {"a": torch.ones(10)})
    checkpoints.wait()
    return checkpoints.failure


def test_a_rank_that_is_lost_meanwhile_is_told_and_no_disk_is_blamed(tmp_path: Path) -> None:
    failure, died = run_ranks(2, _beside_one_that_dies, tmp_path)
    assert died == -signal.SIGKILL
    assert failure.startswith(
        "the checkpoint of step 10 was not saved: another rank of this host was lost meanwhile"
    )
    assert "are free in" not in failure


# -- damage
# --------------------------------------------------------------------------------------------------


def saved(folder: Path, step: int = 10, **settings: object) -> Checkpoints:
    checkpoints = alone(folder, **settings)  # type: ignore[arg-type]
    checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.failure is None
    return checkpoints


def test_a_folder_of_another_run_is_left_out_and_told(tmp_path: Path) -> None:
    ant = saved(tmp_path)
    saved(tmp_path, host="bee", rank=1, run="y")
    assert [note.partition(" was saved by another run")[0] for note in ant.read(10).notes] == [
        str(tmp_path / "host-bee/step-00000010")
    ]


def test_what_is_damaged_is_kept_aside_until_it_is_old(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    for step in (20, 30):
        checkpoints.save(step, state(step), 10)
    checkpoints.wait()
    checkpoints.forget_after(10, damaged=[20])
    assert names(checkpoints) == [".damaged-00000020", "step-00000010"]
    for step in (20, 30):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert names(alone(tmp_path)) == [".damaged-00000020", "step-00000020", "step-00000030"]
    checkpoints.save(40, state(40))
    checkpoints.wait()
    assert names(checkpoints) == ["step-00000030", "step-00000040"]


# -- ranks that send what they should not
# -----------------------------------------------------------------------------


def _beside_a_rogue(rank: int, folder: Path, how: str) -> str | None:
    checkpoints = of_rank(rank, folder, [], timedelta(seconds=5))
    dist.barrier()
    if rank == 0:
        checkpoints.save(10, {"a": torch.ones(10)})
        checkpoints.wait()
        return checkpoints.failure
    group = checkpoints.member.group
    if how == "gather_object":  # what torch DCP unpickles on rank 0
        with suppress(RuntimeError):  # nobody takes it
            dist.gather_object(Planted(folder / "run"), None, dst=0, group=group)
    elif how == "pickle":
        module.all_gather(group, pickle.dumps(Planted(folder / "run")))
    elif how == "list":
        module.all_gather(group, b'{"made": ["a", "b"]}')
    else:
        dist.all_gather(
            [torch.zeros(1, dtype=torch.int64) for _ in range(2)],
            torch.tensor([1 << 62]),
            group=group,
        )
    return None


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gather_object", ""),
        ("pickle", "rank 1 of this host sent"),
        ("list", "rank 1 of this host sent"),
        ("huge", "announces 4,6"),
    ],
)
def test_a_pickle_that_a_rank_sends_is_not_run(tmp_path: Path, how: str, reason: str) -> None:
    failure, _ = run_ranks(2, _beside_a_rogue, tmp_path, how)
    assert not (tmp_path / "run").exists()
    assert failure.startswith("the checkpoint of step 10 was not saved: ")
    assert reason in failure
    assert alone(tmp_path).steps() == []


def _shared_tensors(rank: int, folder: Path) -> None:
    checkpoints = of_rank(rank, folder, [])
    checkpoints.save(
        10,
        {
            "model": torch.arange(1000),
            f"rank{rank}": torch.full((900,), rank),
            "small": torch.tensor(5),
        },
    )
    checkpoints.wait()
    assert checkpoints.failure is None


def test_a_tensor_that_ranks_share_is_written_once(tmp_path: Path) -> None:
    run_ranks(2, _shared_tensors, tmp_path)
    found = alone(tmp_path).read(10)
    assert found.manifest is not None
    assert [sorted(part.tensors) for part in found.manifest.parts] == [
        ["model", "rank0"],
        ["rank1", "small"],
    ]
    assert torch.equal(found.tensors["rank1"], torch.ones(900, dtype=torch.int64))


# -- what stays
# --------------------------------------------------------------------------------------------------


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
