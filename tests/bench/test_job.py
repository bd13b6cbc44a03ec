"""A job: the same model, rates and rows for all."""

from pathlib import Path

import numpy as np
import torch

from thinwire.bench.job import Job, RankEnv, batches, validation

MODEL = {"vocab": 16, "context": 8, "layers": 1, "heads": 1, "width": 8}


def job(folder: Path, **more: int) -> Job:
    text = folder / "text.npy"
    np.save(text, np.arange(400, dtype=np.uint8) % 16)
    return Job("ddp", {}, MODEL, str(text), str(text), batch=3, windows=40, **more)


def test_a_file_reads_back_to_the_same(tmp_path: Path) -> None:
    one = job(tmp_path, seed=4)
    one.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == one


def test_rows_are_those_of_seed_step_and_rank(tmp_path: Path) -> None:
    one = job(tmp_path)
    at = [batches(one, RankEnv(rank, 2, "host0", 1)) for rank in (0, 1)]
    assert at[0](3).shape == (3, 9)
    assert torch.equal(at[0](3), batches(one, RankEnv(0, 2, "host0", 1))(3))
    assert not torch.equal(at[0](3), at[1](3))
    assert not torch.equal(at[0](3), at[0](4))


def test_held_out_rows_come_in_batches_of_32(tmp_path: Path) -> None:
    assert [len(rows) for rows in validation(job(tmp_path))] == [32, 8]


def test_every_rank_builds_the_same_model(tmp_path: Path) -> None:
    one, other = (job(tmp_path).new_model().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
