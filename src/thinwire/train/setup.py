"""Prepare a run before ranks meet: strategy, objective, tokenizer, tokens, device and precision.

It needs no other rank, so a text may take its time to be tokenised; whatever cannot be is refused
here, in one line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from thinwire import env
from thinwire.data.loaders.tokens import SET, Tokens, prepare
from thinwire.data.remote.leads import host_names
from thinwire.errors import ConfigError
from thinwire.models.build import is_preset, kind_of, model_from
from thinwire.models.objective import Objective
from thinwire.models.objectives import objective_from
from thinwire.models.outline import Outline, outline_of
from thinwire.optim.adamw import must_suit
from thinwire.planner.machine.processor import computes_bf16
from thinwire.strategy import Strategy
from thinwire.train.clock import accumulating
from thinwire.train.config import TrainConfig
from thinwire.train.parallel import shards_of
from thinwire.train.strategy_argument import strategy_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class Prepared:
    """The run of one rank, ready to be attached."""

    config: TrainConfig
    strategy: Strategy
    objective: Objective
    tokenizer: PreTrainedTokenizerFast
    tokens: Tokens
    device: torch.device
    precision: str
    model: Callable[[], PreTrainedModel]
    """Makes the model, on the device; the seed decides its weights. To be sharded, it is empty."""
    shards: int = 0
    """How many ranks hold a replica together; 0: each holds its own."""
    outline: Outline | None = None
    """Of a model to be sharded."""

    @property
    def bytes_per_token(self) -> float:
        return self.tokens.held_bytes / max(1, len(self.tokens.held))

    def steps(self, world: int) -> int:
        """Return the batches of each rank: as given, or from the tokens of all ranks."""
        if not self.config.tokens:
            return self.config.steps
        return max(
            1, -(-self.config.tokens // (world * self.config.batch * self.objective.length_read))
        )


def prepare_run(config: TrainConfig) -> Prepared:
    """Prepare everything that one rank needs.

    Raises:
        ThinwireError: whatever cannot be: strategy, model, text, tokenizer, objective, device.
    """
    # 1. Strategy, device and precision.
    shards = shards_of(config, env.world_size(), env.local_world_size())
    strategy = accumulating(strategy_from(config.strategy), config.accumulate)
    must_suit(strategy, config.optimizer)
    if strategy.when.skips_steps:
        raise ConfigError(
            f"--strategy {config.strategy}: here all ranks read as many batches; by_speed(…) is "
            "for loops of your own"
        )
    device, precision = _device(config), config.precision
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp32"
    # 2. Objective, tokenizer and tokens.
    kind = kind_of(config.model)
    objective = objective_from(
        kind if config.objective == "auto" else config.objective, config.context, kind
    )
    # A packed set has its own tokenizer.
    tokenizer_spec = config.tokenizer
    if tokenizer_spec == "auto":
        tokenizer_spec = (
            ""
            if config.data.startswith(SET)
            else "byte"
            if is_preset(config.model)
            else config.model
        )
    cache = Path(config.cache) if config.cache else None
    tokenizer, tokens = prepare(
        config.data, tokenizer_spec, objective.specials, cache, host_names(config.data_hosts)
    )
    objective = objective.fitted(tokenizer)
    if (
        not config.data.startswith(SET)
        and min(len(tokens.train), len(tokens.held)) < objective.length
    ):
        raise ConfigError(
            f"--data {config.data}: the text is too short: {len(tokens.train):,} tokens to train "
            f"on and {len(tokens.held):,} held out, "
            f"and a row of --context {config.context} takes {objective.length:,} of each; "
            f"give a text of at least {20 * objective.length:,} tokens or so, or a lower --context"
        )

    @functools.cache  # built before ranks meet, since it may take its time
    def model() -> PreTrainedModel:
        torch.manual_seed(config.seed)
        made = model_from(config.model, tokenizer, config.context)
        made.to(device)  # type: ignore[arg-type]  # wrapped by transformers, whose wrapper loses the types
        return made

    outline = outline_of(config.model, tokenizer, config.context) if shards else None
    return Prepared(
        config,
        strategy,
        objective,
        tokenizer,
        tokens,
        device,
        precision,
        functools.cache(outline.empty) if outline is not None else model,
        shards,
        outline,
    )


def _device(config: TrainConfig) -> torch.device:
    local, ranks = env.local_rank(), env.local_world_size()
    there = torch.cuda.device_count() if config.device != "cpu" else 0
    if there >= ranks:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    if config.device == "cuda":
        raise ConfigError(
            f"--device cuda: {ranks} ranks on this machine, but torch sees {there} GPUs; take "
            "--device cpu or fewer --workers"
        )
    return torch.device("cpu")
