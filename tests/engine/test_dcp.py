"""A DCP folder is read without running what is pickled in it; the folder of an older version gives
the same bits."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

import thinwire
from tests.engine.models import mlp, train
from tests.planted import Planted
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.engine import dcp
from thinwire.engine.agree import hash_of
from thinwire.errors import CheckpointError
from thinwire.how import gather
from thinwire.on import deltas, gradients, sgd
from thinwire.what import feedback, topk
from thinwire.when import every

FORMAT_1 = Path(__file__).parents[1] / "train" / "format1.tar.xz"
TENSORS = {
    "matrix": torch.randn(30, 20),
    "number": torch.tensor(3.5),
    "none": torch.zeros(0, 4),
    "half": torch.randn(7).bfloat16(),
    "eighth": torch.randn(7).to(torch.float8_e4m3fn),
    "whole": torch.arange(9),
    "bits": torch.tensor([True, False]),
    "turned": torch.randn(4, 5).t(),
}

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, hash_of(tensor)


def test_what_dcp_saves_is_read_bit_for_bit(tmp_path: Path) -> None:
    torch_dcp.save(
        {"a": TENSORS, "b": {"x": torch.ones(2)}, "object": {"some": "thing"}},
        checkpoint_id=tmp_path,
    )
    read = dcp.read_tensors(tmp_path, lambda name: name.startswith("a."))
    assert {name: bits(tensor) for name, tensor in read.items()} == {
        f"a.{name}": bits(each) for name, each in TENSORS.items()
    }
    assert dcp.tensor_names(tmp_path) == [*(f"a.{name}" for name in TENSORS), "b.x"]


def test_a_folder_of_the_first_format_is_read_bit_for_bit(tmp_path: Path) -> None:
    """Frozen: Thinwire 0.1.0 wrote it, two ranks of `local_sgd,period=2`."""
    with tarfile.open(FORMAT_1) as archive:
        archive.extractall(tmp_path, filter="data")
    facts = json.loads((tmp_path / "facts.json").read_text())
    read = dcp.read_tensors(tmp_path / "step-00000004", lambda _: True)
    assert len(facts) == 150
    assert {
        name: [str(each.dtype), list(each.shape), hash_of(each).hex()]
        for name, each in read.items()
    } == facts


PLANTED = {
    "of a module": Planted,
    "of os": lambda mark: Planted(mark, os.mkdir, str(mark)),
    "a builtin": lambda mark: Planted(mark, eval, f"__import__('os').mkdir({str(mark)!r})"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_pickle_planted_in_the_index_is_not_run(tmp_path: Path, name: str) -> None:
    torch_dcp.save({"a": TENSORS}, checkpoint_id=tmp_path)
    index, mark = tmp_path / ".metadata", tmp_path / "run"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data = PLANTED[name](mark)
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        CheckpointError,
        match=r"\.metadata cannot be read .*which DCP does not write: nothing of it was run",
    ):
        dcp.read_tensors(tmp_path, lambda _: True)
    assert not mark.exists()


def test_a_pickle_planted_in_the_tensors_is_not_run(tmp_path: Path) -> None:
    torch_dcp.save({"a": torch.zeros(1000)}, checkpoint_id=tmp_path)
    (file,) = tmp_path.glob("*.distcp")
    planted = pickle.dumps(Planted(tmp_path / "run"), protocol=2)
    file.write_bytes(planted.ljust(file.stat().st_size, b"\0"))
    with pytest.raises(CheckpointError, match=r"'a' in .* cannot be read"):
        dcp.read_tensors(tmp_path, lambda _: True)
    assert not (tmp_path / "run").exists()


def test_a_pickle_cannot_write_into_a_class_of_torch(tmp_path: Path) -> None:
    name = Metadata.__module__.encode()
    (tmp_path / ".metadata").write_bytes(
        b"\x80\x02c" + name + b"\nMetadata\n(Nd" + b"\x8c\x01xNs\x86b."
    )
    with pytest.raises(CheckpointError, match="cannot be read"):
        dcp.tensor_names(tmp_path)
    assert not hasattr(Metadata, "x")


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    torch_dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "in")
    index = tmp_path / "in" / ".metadata"
    index.write_bytes(index.read_bytes().replace(b"\x0c__0_0.distcp", b"\x0c../12.distcp"))
    with pytest.raises(CheckpointError, match=r"it leads out of the folder, to '\.\./12\.distcp'"):
        dcp.read_tensors(tmp_path / "in", lambda _: True)


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds no torch DCP checkpoint: there is no \.metadata in it"
    ):
        dcp.read_tensors(tmp_path, lambda _: True)


def test_load_checkpoint_takes_up_what_dcp_saved_and_runs_no_pickle(tmp_path: Path) -> None:
    def start() -> tuple:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return model, optimizer, thinwire.attach(model, optimizer, recipes.topk_sgd(fraction=0.1))

    model, optimizer, sync = start()
    train(model, optimizer, 0, range(3))
    torch_dcp.save({"sync": sync, "extra": {"an": "object"}}, checkpoint_id=tmp_path)
    before = {key: bits(value) for key, value in sync.state_dict().items()}
    sync.close()
    _, _, again = start()
    again.load_checkpoint(tmp_path)
    assert {key: bits(value) for key, value in again.state_dict().items()} == before
    with pytest.raises(
        CheckpointError, match=r"no syncer called 'other'; it was saved with the keys sync"
    ):
        again.load_checkpoint(tmp_path, "other")
    index = tmp_path / ".metadata"
    index.write_bytes(pickle.dumps(Planted(tmp_path / "run")))
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        again.load_checkpoint(tmp_path)
    assert not (tmp_path / "run").exists()
    again.close()


INSIDE = Strategy(every(1), feedback(topk(0.1)), gather(), gradients())


def _two_levels(rank: int, folder: str) -> tuple[list[Tensor], list[Tensor], str]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    mine, _ = dist.new_subgroups(2)

    def residuals(sync: thinwire.Syncer) -> list[Tensor]:
        return [
            leaf.flat.clone()
            for bucket in sync.buckets
            for part in bucket.slices
            for _, leaf in part.state.walk()
        ]

    with (
        thinwire.attach(model, optimizer, INSIDE, group=mine) as inside,
        thinwire.attach(model, optimizer, Strategy(every(4), on=deltas(outer=sgd(1.0)))) as across,
    ):
        train(model, optimizer, rank, range(5))
        torch_dcp.save({"inside": inside, "across": across}, checkpoint_id=folder)
        saved = residuals(inside)
    with thinwire.attach(model, optimizer, INSIDE, group=mine) as inside:
        inside.load_checkpoint(folder, "inside")
        loaded = residuals(inside)
    with (
        thinwire.attach(model, optimizer, INSIDE) as whole,
        pytest.raises(CheckpointError) as error,
    ):
        whole.load_checkpoint(folder, "inside")
    return saved, loaded, str(error.value)


def test_each_node_of_two_levels_has_its_own_residuals_back(tmp_path: Path) -> None:
    for saved, loaded, error in run_ranks(4, _two_levels, str(tmp_path)):
        assert any(bool(residual.any()) for residual in saved)
        assert all(map(torch.equal, saved, loaded))
        assert "of ranks among 0-1, among 2-3, and this syncer is among all" in error
