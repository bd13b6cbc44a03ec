"""Lay buckets out: what a layout is, and the one of models whose gradients Thinwire gathers."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from thinwire.core import Schedule
from thinwire.engine.buckets import FlatBucket, plan
from thinwire.engine.replica import Replica
from thinwire.engine.wrappers import no_shards
from thinwire.strategy import Strategy


class Layout(Protocol):
    """A layout of a model's buckets, by whoever gathers its gradients."""

    @property
    def wrapper(self) -> nn.Module | None:
        """Return the data-parallel module that is meant to be around the model, if one is."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return which sources go with it."""

    @property
    def left_out(self) -> frozenset[str]:
        """Return the names of parameters that train and that no rank sends, as the user wants."""

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        """Plan the buckets of every other parameter that trains; see `plan`."""

    def gather(self, wanted: bool) -> None:
        """Have the framework gather gradients, or leave them alone: local steps need none."""

    @property
    def replica(self) -> Replica:
        """Return the ranks that hold one replica's shards."""

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        """Return why it cannot lay the model out under this strategy."""

    def name_parameters(self) -> None:
        """Have the model name the parameters that the optimiser steps."""

    def close(self) -> None:
        """Leave the framework as it was."""


class OwnLayout:
    """The layout of a model whose gradients Thinwire itself gathers; it has no state."""

    wrapper: nn.Module | None = None
    sources: tuple[str, ...] = ("hooks", "manual")
    left_out: frozenset[str] = frozenset()

    def plan(
        self, model: nn.Module, bucket_bytes: int, when: Schedule, wide: bool
    ) -> list[FlatBucket]:
        return plan(model, bucket_bytes, when, wide)

    replica = Replica()

    def refusals(self, model: nn.Module, strategy: Strategy, overlap: str) -> list[str]:
        return no_shards(model)

    def gather(self, wanted: bool) -> None:
        """Do nothing: nobody but the source gathers gradients."""

    def name_parameters(self) -> None:
        """Do nothing: it always does."""

    def close(self) -> None:
        """Do nothing: nothing was changed."""
