"""Write the whole model from its shards, a file at a time, so that no rank holds it whole.

Every rank of a replica gathers parameter after parameter. Those that write keep what goes into one
file (1 GB, or one parameter) until it is written. The folder is that of `save_pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thinwire.engine.shards import fsdp_modules, reshard, whole_of
from thinwire.errors import CheckpointError
from thinwire.models.hugging_face import quiet
from thinwire.text.words import error_text

FILE = "1GB"
NAMES = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"


def save_gathered(model: Any, tokenizer: Any, folder: Path | None, most: str = FILE) -> None:
    """Gather the model and write it into a folder; every rank of a replica calls it alike.

    Args:
        model: sharded.
        tokenizer: its tokenizer.
        folder: where this rank writes; `None`: it only takes part.
        most: the size of a file.

    Raises:
        CheckpointError: the files cannot be written.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    # 1. Which tensor goes into which file, by shapes alone, so that all ranks agree.
    reshard(fsdp_modules(model))
    values = saved_tensors(model)
    shapes = {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for name, value in values.items()
    }
    plan = split_torch_state_dict_into_shards(shapes, filename_pattern=NAMES, max_shard_size=most)
    # 2. Gather; a rank that cannot write goes on, since the others wait for it.
    failure: Exception | None = None
    for file, names in plan.filename_to_tensors.items():
        held = {}
        for name in names:
            whole = whole_of(values[name]).detach()
            if folder is not None and failure is None:
                held[name] = whole.cpu().contiguous()
        if held and folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(held, folder / file, metadata={"format": "pt"})
            except Exception as error:  # safetensors has a kind of its own for a full disk
                failure = error
    if folder is None:
        return
    if failure is not None:
        raise CheckpointError(f"the model could not be written: {error_text(failure)}") from failure
    # 3. What is beside the weights.
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    with quiet():
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def saved_tensors(model: nn.Module) -> dict[str, Any]:
    """Return what a model saves, by name; a tied weight once, by its first name."""
    own = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own.keys()
    return {name: value for name, value in model.state_dict().items() if name not in tied}
