"""Share the training loop of contestants: what differs between them is how a gradient is made, sent
and applied."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Loop:
    """The loop of most tutorials. A contestant sets `net`, `optimizer` and `clip`, and overrides
    what its library does otherwise."""

    net: Any  # nn.Module, or what a library wraps around one
    optimizer: Any
    clip: float

    def step(self, tokens: Tensor, targets: Tensor, lr: float) -> float:
        """See `Trainer`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        _, loss = self.net(tokens, targets)
        self.backward(loss)
        self.update()
        return float(loss.detach())

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        loss.backward()

    def update(self) -> None:
        """Clip, unless at 0, and take the optimiser's step."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()

    def split(self) -> dict[str, float]:
        """See `Trainer`: most libraries cannot tell."""
        return {}
