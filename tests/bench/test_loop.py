"""A step as most libraries take it."""

import torch
from torch import nn

from thinwire.bench.loop import Loop


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, (self.weight * tokens - targets).square().mean()


def loop(clip: float) -> Loop:
    made = Loop()
    made.net = Squares()  # type: ignore[assignment]
    made.optimizer = torch.optim.SGD(made.net.parameters(), lr=0.0)  # type: ignore[assignment]
    made.clip = clip
    return made


def test_a_step_takes_its_own_rate_and_returns_its_loss() -> None:
    made = loop(clip=0.0)
    assert made.step(torch.ones(1), torch.zeros(1), lr=0.1) == 9.0
    assert next(made.net.parameters()).item() == torch.tensor(3.0 - 0.1 * 6).item()
    assert made.split() == {}


def test_gradients_are_clipped() -> None:
    made = loop(clip=1.0)
    made.step(torch.ones(1), torch.zeros(1), lr=0.1)
    assert abs(next(made.net.parameters()).item() - 2.9) < 1e-4
