"""Muon and AdamW as one optimiser: what each does alone, under an engine and through a
checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import thinwire
from tests.threads import on_threads
from thinwire import recipes
from thinwire.core import Driver
from thinwire.optim.muon import Together, muon


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inside, self.norm, self.lm_head = (
            nn.Embedding(11, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 11),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(torch.tanh(self.inside(self.embed(tokens)))))


torch.manual_seed(0)
MODEL = Small()


def backward(model: nn.Module, step: int, rank: int = 0) -> None:
    draws = torch.Generator().manual_seed(100 * step + rank)
    tokens = torch.randint(0, 11, (16,), generator=draws)
    nn.functional.cross_entropy(model(tokens), (tokens + 1) % 11).backward()


def test_each_part_is_torchs_own_bit_for_bit_and_follows_the_rate() -> None:
    ours, theirs = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    together = muon(ours, lr=0.02, weight_decay=0.1)
    first = torch.optim.Muon(
        [theirs.inside.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    vectors = [theirs.inside.bias, theirs.norm.weight, theirs.norm.bias, theirs.lm_head.bias]
    groups = [
        {"params": [theirs.embed.weight, theirs.lm_head.weight], "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    second = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95))
    for step in range(6):
        for optimizer in (together, first, second):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (1 + step)
        backward(ours, step)
        backward(theirs, step)
        together.step()
        first.step()
        second.step()
        for optimizer in (together, first, second):
            optimizer.zero_grad()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    assert len(together.state) == len(list(ours.parameters()))


def test_its_state_dict_is_taken_up_by_all_parts() -> None:
    whole, half = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    one, two = muon(whole), muon(half)
    for step in range(8):
        for model, optimizer in ((whole, one), (half, two)):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
        if step == 3:
            saved = copy.deepcopy(two.state_dict())
            half = copy.deepcopy(half)
            two = muon(half, lr=9.0)
            two.load_state_dict(saved)
            assert {group["lr"] for part in two.parts for group in part.param_groups} == {0.02}
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True)
    )


def test_muloco_trains_a_whole_model_with_it_and_resumes() -> None:
    strategy = recipes.muloco(period=3)

    def work(stop: int, state: dict[int, Any] | None, driver: Driver) -> Any:
        model = copy.deepcopy(MODEL)
        sync = thinwire.attach(model, optimizer := muon(model), strategy, driver=driver)
        if state is not None:
            sync.load_state_dict(state[driver.rank][0])
        for step in range(sync.step, stop):
            backward(model, step, driver.rank)
            optimizer.step()
            optimizer.zero_grad()
        told = (
            sync.state_dict(),
            torch.cat([param.detach().reshape(-1) for param in model.parameters()]),
        )
        sync.close()
        return told

    whole, half = (
        on_threads(2, lambda driver: work(12, None, driver)),
        on_threads(2, lambda driver: work(7, None, driver)),
    )
    resumed = on_threads(2, lambda driver: work(12, half, driver))
    for rank in range(2):
        assert not isinstance(resumed[rank], BaseException), resumed[rank]
        assert torch.equal(resumed[rank][1], whole[rank][1])
    kept = {key.split("|")[1] for key in half[1][0] if key.startswith("rank1|private/optimizer")}
    assert {"private/optimizer/momentum_buffer", "private/optimizer/exp_avg"} <= kept


def test_nothing_for_one_of_the_two_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no parameter is left to AdamW: use torch.optim.Muon alone"
    ):
        muon(nn.Linear(4, 4, bias=False))
    with pytest.raises(
        ValueError, match=r"no parameter is left to Muon: use torch.optim.AdamW alone"
    ):
        muon(nn.LayerNorm(4))


def test_a_parameter_in_two_parts_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        Together(torch.optim.SGD([weight], 0.1), torch.optim.SGD([weight], 0.1))
