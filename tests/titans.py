"""torchtitan's trainer and debug model on CPUs: what it asks of a device that a CPU lacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils

TOKENS, VOCABULARY = 32, 2048


def _on_cpu(rank: int, world: int) -> None:
    """Let torchtitan take the CPU for its device; before its first import."""
    assert not any(name.startswith("torchtitan.") for name in sys.modules)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch._utils._get_available_device_type = lambda: "cpu"
    # What a monitor of memory reads, which torch.cpu has not.
    memory = SimpleNamespace(total_memory=1 << 30)
    lacking: dict[str, Any] = {
        "get_device_name": lambda _=None: "cpu",
        "get_device_properties": lambda _=None: memory,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
        "memory_stats": lambda _=None: {},
    }
    for name, value in lacking.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, value)


def config_of(folder: Path, rank: int, replicas: int, shards: int, steps: int) -> Any:
    """torchtitan's configuration of its debug model, on tokens drawn from a seed.

    It is called once in a process, before anything else of torchtitan.
    """
    _on_cpu(rank, replicas * shards)
    from torchtitan.distributed import utils as distributed

    distributed.set_pg_timeouts = lambda **_: None  # its barrier names a GPU
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    class Tokens(BaseDataLoader):
        """Sequences of tokens, other ones for each data-parallel rank."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            pass

        def __init__(
            self, config: Config, *, dp_rank: int, local_batch_size: int, seq_len: int, **_: Any
        ) -> None:
            self.rank, self.batch, self.length, self.drawn = dp_rank, local_batch_size, seq_len, 0

        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            while True:
                draws = torch.Generator().manual_seed(1000 * self.drawn + self.rank)
                first = torch.randint(0, VOCABULARY, (self.batch, 1), generator=draws)
                row = (first + torch.arange(self.length + 1)) % 64  # something to learn
                self.drawn += 1
                yield {"input": row[:, :-1]}, row[:, 1:]

        def state_dict(self) -> dict[str, Any]:
            return {"drawn": self.drawn}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.drawn = state.get("drawn", 0)

    class NoWords(BaseTokenizer):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseTokenizer.Config):
            pass

        def __init__(self, config: Config, **_: Any) -> None: ...

        def encode(self, *_: Any, **__: Any) -> list[int]:
            return []

        def decode(self, *_: Any, **__: Any) -> str:
            return ""

        def get_vocab_size(self) -> int:
            return VOCABULARY

    config = llama3_debugmodel()
    config.model_spec.model.layers = config.model_spec.model.layers[:2]
    for _, _, parent, name in list(config.model_spec.model.traverse(FlexAttention.Config)):
        setattr(parent, name, ScaledDotProductAttention.Config())
    config.dump_folder = str(folder)
    config.dataloader, config.tokenizer = Tokens.Config(), NoWords.Config()
    config.training.steps, config.training.seq_len = steps, TOKENS
    config.training.local_batch_size = 2
    config.training.mixed_precision_param = "float32"
    config.training.disable_cuda_graphs = True
    config.parallelism.data_parallel_replicate_degree = replicas
    config.parallelism.data_parallel_shard_degree = shards
    config.parallelism.spmd_backend = "partial_dtensor"
    config.activation_checkpoint = None
    config.validator.enable = False
    config.debug.seed = 0
    config.checkpoint = CheckpointManager.Config(
        interval=100, last_save_model_only=False, enable=False
    )
    return config
