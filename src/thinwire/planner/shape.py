"""Describe a model by its sizes: what a strategy sends and keeps needs no values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shape:
    """Describe a transformer's matrices: in each layer 3w × w, w × w, 4w × w and w × 4w.

    Example:
        >>> Shape(768, 12).parameters
        84934656
    """

    width: int
    layers: int

    @property
    def parameters(self) -> int:
        """Return how many there are."""
        return 12 * self.layers * self.width**2

    @classmethod
    def about(cls, parameters: int) -> Shape:
        """Return a shape of about so many parameters, 64 times as wide as it has layers.

        Example:
            >>> Shape.about(85_000_000), Shape.about(10**9).parameters
            (Shape(width=768, layers=12), 1003622400)
        """
        layers = max(1, round((parameters / (12 * 64**2)) ** (1 / 3)))
        return cls(max(8, round((parameters / (12 * layers)) ** 0.5 / 8) * 8), layers)

    @property
    def text(self) -> str:
        """Return it for people."""
        return (
            f"{self.layers} layers of width {self.width:,} ({self.parameters:,} parameters in "
            "matrices)"
        )

    def module(self) -> nn.Module:
        """Return the matrices, without storage."""
        import torch
        from torch import nn

        w = self.width
        with torch.device("meta"):  # nothing is allocated
            return nn.ParameterList(
                [
                    nn.Parameter(torch.empty(shape))
                    for _ in range(self.layers)
                    for shape in ((3 * w, w), (w, w), (4 * w, w), (w, 4 * w))
                ]
            )


@dataclass(frozen=True)
class Named:
    """Hold a model without storage, and its name."""

    name: str
    meta: nn.Module

    @property
    def parameters(self) -> int:
        """Return how many are trained."""
        return sum(param.numel() for param in self.meta.parameters() if param.requires_grad)

    @property
    def text(self) -> str:
        """Return it for people."""
        return f"{self.name} ({self.parameters:,} parameters)"

    def module(self) -> nn.Module:
        """Return the model, without storage."""
        return self.meta
