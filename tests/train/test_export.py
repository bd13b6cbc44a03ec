"""The whole model, written from shards file by file: what save_pretrained writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import run_ranks
from tests.train.runs import MODELS
from tests.train.shards import shared
from thinwire.errors import CheckpointError
from thinwire.models.build import model_from
from thinwire.models.hugging_face import auto_class, save_pretrained
from thinwire.train.export import save_gathered
from thinwire.train.setup import prepare_run
from thinwire.train.sharding import shard


def _export(rank: int, models: dict[str, str], folder: Path) -> dict[str, Any]:
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    made: dict[str, Any] = {}
    for name, model in models.items():
        prepared = prepare_run(shared(model=model))
        empty = prepared.model()
        assert prepared.outline is not None
        shard(empty, prepared.outline, 2, prepared.device, seed=5)
        for most in ("1GB", "10KB"):
            mine = folder / f"{name}-{most}"
            save_gathered(empty, prepared.tokenizer, None if rank else mine, most)
        try:
            save_gathered(empty, prepared.tokenizer, None if rank else Path("/dev/null/no"))
        except CheckpointError as error:
            made["refused"] = str(error)
        if rank == 0:
            torch.manual_seed(5)
            whole = model_from(model, prepared.tokenizer, 16)
            save_pretrained(whole, prepared.tokenizer, folder / name)
    return made


@pytest.mark.filterwarnings("ignore")
def test_it_is_what_save_pretrained_writes(tmp_path: Path) -> None:
    models = MODELS | {"gpt2": shared().model}
    first, second = run_ranks(2, _export, models, tmp_path, timeout=120)
    assert "could not be written" in first["refused"]
    assert not second
    for name in models:
        plain, ours = tmp_path / name, tmp_path / f"{name}-1GB"
        assert sorted(os.listdir(plain)) == sorted(os.listdir(ours)), name
        assert (plain / "config.json").read_text() == (ours / "config.json").read_text(), name
        ours_, theirs = (load_file(each / "model.safetensors") for each in (ours, plain))
        assert ours_.keys() == theirs.keys(), name
        assert all(torch.equal(ours_[key], theirs[key]) for key in theirs), name
        # in several files, too
        parts = tmp_path / f"{name}-10KB"
        assert len(list(parts.glob("model-*.safetensors"))) > 1
        kind = name if name in MODELS else "causal"
        read, said = auto_class(kind).from_pretrained(parts, output_loading_info=True)
        assert not said["missing_keys"]
        state = read.state_dict()
        assert all(torch.equal(state[key], theirs[key]) for key in theirs), name
