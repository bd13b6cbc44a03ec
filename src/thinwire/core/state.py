"""State: tensors that outlive a flight, with their kinds. The engine owns, saves and reshards them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from thinwire.core.spec import Ranks, Spec

Kind: TypeAlias = Literal["summed", "sharded", "replicated", "private"]


@dataclass(slots=True)
class Leaf:
    """A state tensor, what kind of state it is, and which parameters it belongs to.

    kind: *summed* (only its sum over ranks matters: residuals), *sharded* (each element has one owner),
        *replicated* (equal on all ranks) or *private* (a rank's own).
    spec: set where `value` is flat over that span; it is then saved by parameter and element.
    part: else the parameter that the whole tensor belongs to.
    fade: how much of an older value a newer one still holds (a residual's decay).
    group: the ranks whose values of this span a *summed* leaf is the sum of; empty for all.
    """

    value: Tensor
    kind: Kind
    spec: Spec | None = None
    part: str | None = None
    fade: float = 1.0
    group: Ranks = ()


@dataclass(slots=True)
class State:
    """A tree of leaves, owned, saved and resharded by the engine; codecs and routes own no tensors.

    A codec replaces `leaf.value` by a new tensor and never writes into it, so that the engine can take a step back.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    children: dict[str, State] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Leaf:
        return self.leaves[name]

    def child(self, name: str) -> State:
        return self.children[name]

    def walk(self, path: str = "") -> Iterator[tuple[str, Leaf]]:
        """Every leaf with its path; children with a number for a name (spans of one bucket) do not show in it."""
        for name, leaf in self.leaves.items():
            yield path + name, leaf
        for name, child in self.children.items():
            yield from child.walk(path if name.isdigit() else f"{path}{name}/")
