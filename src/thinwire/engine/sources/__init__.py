"""Notify the engine that gradients are there, or that the optimiser has stepped."""

from thinwire.engine.sources.ddp import DdpSource
from thinwire.engine.sources.hooks import GradientHooks
from thinwire.engine.sources.manual import Manual
from thinwire.engine.sources.optimizer import OptimizerSteps
from thinwire.engine.sources.source import GradientSource, Source

__all__ = ["DdpSource", "GradientHooks", "GradientSource", "Manual", "OptimizerSteps", "Source"]
