"""Models of all sorts inside DistributedDataParallel: dense it is DDP to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import thinwire
from tests.ddp import train, wrapped
from tests.engine.models import mlp
from tests.ranks import run_ranks


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


class Empty(nn.Module):
    """A layer whose weight has no elements, beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.none = mlp(), nn.Parameter(torch.zeros(0, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) + self.none.sum(0)
        return out


class Images(nn.Module):
    """Convolutions whose weights lie in memory channels last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten()
        ).to(memory_format=torch.channels_last)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.view(-1, 6, 2, 2).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.head(self.net(pixels))
        return out


class Narrow(nn.Module):
    """A model of bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.to(torch.bfloat16)).float()
        return out


KINDS = {"bf16": Narrow, "channels last": Images, "tied": Tied, "no elements": Empty}


def _dense(rank: int) -> dict[str, tuple[bool, bool, int]]:
    seen = {}
    for name, make in KINDS.items():
        for variant in ("plain", "as_bucket_view"):
            ends = []
            for ours in (False, True):
                ddp, optimizer = wrapped(make(), variant)
                sync = thinwire.ddp_hook(ddp, optimizer=optimizer, check_every=1) if ours else None
                start = torch.cat([param.detach().flatten() for param in ddp.parameters()]).clone()
                train(ddp, optimizer, rank, range(6))
                ends.append(torch.cat([param.detach().flatten() for param in ddp.parameters()]))
                if sync is not None:
                    buckets = len(sync.buckets)
                    sync.close()
            seen[f"{name}, {variant}"] = (
                torch.equal(*ends),
                not torch.equal(ends[0], start),
                buckets,
            )
    return seen


def test_dense_is_ddp_bit_for_bit_for_models_of_all_sorts() -> None:
    for seen in run_ranks(2, _dense):
        for name, (same, trained, buckets) in seen.items():
            assert same, name
            assert trained, name
            assert buckets > 1, name
