"""Define state: tensors that outlive a flight, with their kinds. The engine owns, saves and
reshards them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from thinwire.core.spec import Ranks, Spec

Kind: TypeAlias = Literal["summed", "sharded", "replicated", "private"]


class Form(Protocol):
    """A form in which the values of a span are stored in fewer bytes. What was packed once is
    packed to the same bits again: pack(unpack(v)) = v."""

    def pack(self, flat: Tensor) -> Tensor:
        """Return the tensor to store, from (spec.numel,) spec.work; finite values stay finite."""

    def unpack(self, value: Tensor) -> Tensor:
        """Return the values of a stored tensor: (spec.numel,) spec.work."""


@dataclass(slots=True)
class Leaf:
    """A state tensor, what kind of state it is, and which parameters it belongs to.

    kind: *summed* (only its sum over ranks matters: residuals), *sharded* (each element has one
        owner), *replicated* (equal on all ranks) or *private* (a rank's own).
    spec: set where the leaf is flat over that span; it is then saved by parameter and element.
    part: else the parameter that the whole tensor belongs to; of a *private* one, the span
        (`spec.key`). Such a small private tensor (a scale, a threshold, a window of norms) starts
        anew in another world or layout.
    fade: how much of the older value the newest one holds (a residual's decay); a codec whose decay
    moves sets it in every flight.
    group: the ranks whose values of this span a *summed* leaf is the sum of; empty for all.
    form: how a flat leaf is kept; `None` where `value` is its values, in whatever float type.
    """

    value: Tensor
    kind: Kind
    spec: Spec | None = None
    part: str | None = None
    fade: float = 1.0
    group: Ranks = ()
    form: Form | None = None
    first: Tensor | None = field(init=False, default=None, repr=False)
    """What a small private leaf began with."""

    def __post_init__(self) -> None:
        if self.small:
            self.first = self.value

    @property
    def small(self) -> bool:
        """Return whether it is private, and not flat over a span."""
        return self.kind == "private" and self.spec is None

    @property
    def flat(self) -> Tensor:
        """Return the values over the span, in its work dtype."""
        return self.unpack(self.value)

    @flat.setter
    def flat(self, flat: Tensor) -> None:
        self.value = self.pack(flat)

    def pack(self, flat: Tensor) -> Tensor:
        """Return what these values are kept as: a tensor for `value`."""
        return (
            flat.to(self.value) if self.form is None else self.form.pack(flat.to(self.value.device))
        )

    def unpack(self, value: Tensor) -> Tensor:
        """Return the values that a tensor of `value`'s make holds."""
        if self.form is not None:
            return self.form.unpack(value)
        return value if self.spec is None else value.to(self.spec.work)


@dataclass(slots=True)
class State:
    """A tree of leaves, owned, saved and resharded by the engine; codecs and routes own no tensors.

    A codec replaces `leaf.value` by a new tensor and never writes into it, so that the engine can
    take a step back.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    children: dict[str, State] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Leaf:
        return self.leaves[name]

    def child(self, name: str) -> State:
        return self.children[name]

    def walk(self, path: str = "") -> Iterator[tuple[str, Leaf]]:
        """Yield every leaf with its path.

        Children with a number for a name (spans of one bucket) do not show in it.
        """
        for name, leaf in self.leaves.items():
            yield path + name, leaf
        for name, child in self.children.items():
            yield from child.walk(path if name.isdigit() else f"{path}{name}/")
