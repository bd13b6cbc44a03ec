"""Notify the engine that gradients are there, or that the optimiser has stepped."""

from thinwire.engine.sources.ddp import DdpSource
from thinwire.engine.sources.hooks import GradientHooks
from thinwire.engine.sources.manual import Manual
from thinwire.engine.sources.optimizer import OptimizerSteps
from thinwire.engine.sources.shards import ShardHooks
from thinwire.engine.sources.source import GradientSource, Source

BY_NAME: dict[str, type[GradientSource]] = {
    "hooks": GradientHooks,
    "manual": Manual,
    "ddp": DdpSource,
    "shards": ShardHooks,
}
"""The sources of gradients, as options name them."""

__all__ = [
    "BY_NAME",
    "DdpSource",
    "GradientHooks",
    "GradientSource",
    "Manual",
    "OptimizerSteps",
    "ShardHooks",
    "Source",
]
