"""The user's own DCP folders of sharded replicas: saved at one sharding, taken up at another, by
unsharded ranks, or inside DDP, and back."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import thinwire
from tests.ranks import run_ranks
from tests.shards import BYTES, Net, loss_of, mesh_of, sharded
from thinwire import Strategy, recipes
from thinwire.engine.dcp import tensor_names
from thinwire.how import gather, two_shot
from thinwire.on import deltas, nesterov, parameters
from thinwire.what import feedback, topk, uniform
from thinwire.when import delayed, every

Layout = tuple[str, int, int]
"""How ranks hold the model, replicas, and the shards of each."""
Folded = dict[str, list[dict[str, Tensor]]]
"""By kind: each rank's state."""

SAVED, MORE = 7, 3  # steps: on local steps, some after a landing
KINDS: dict[str, Strategy] = {
    "4 bits": Strategy(what=feedback(uniform(4)), how=two_shot(back=feedback(uniform(4)))),
    "top-k": Strategy(what=feedback(topk(4, 32)), how=gather()),
    "PowerSGD": recipes.powersgd(rank=2),
    "deltas": Strategy(every(2), feedback(uniform(4)), two_shot(), deltas(nesterov(0.7, 0.9))),
    "parameters": Strategy(every(3), on=parameters()),
    "delayed": Strategy(delayed(1, every(1)), feedback(topk(4, 32)), gather()),
    "streaming": recipes.streaming_diloco(period=4, fragments=2, tau=1),
}
IN_THE_AIR = ("delayed", "streaming")
"""Kinds whose state is bound to the buckets, and DDP makes other ones."""


def _begin(layout: Layout, strategy: Strategy, rank: int) -> tuple[Any, Any, Any]:
    how, replicas, shards = layout
    if how == "fsdp":
        model: Any = sharded(mesh_of(replicas, shards)["shard"])
    else:
        model = Net()
    if how == "ddp":
        model = DistributedDataParallel(model, bucket_cap_mb=BYTES / 2**20)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(rank // shards)  # attach gives all of them rank 0's
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    if how == "ddp":
        sync = thinwire.ddp_hook(model, strategy, optimizer=optimizer)
    else:
        size = 4 * BYTES // shards  # of the same parameters in each layout
        sync = thinwire.attach(model, optimizer, strategy, bucket_bytes=size)
    return model, optimizer, sync


def _train(model: Any, optimizer: Any, rank: int, steps: range) -> None:
    for step in steps:
        loss_of(model, step, rank).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _saves(rank: int, layout: Layout, kinds: list[str], folder: Path) -> dict[str, Any]:
    made = {}
    for kind in kinds:
        model, optimizer, sync = _begin(layout, KINDS[kind], rank)
        _train(model, optimizer, rank, range(SAVED))
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {"model": of_model, "optim": of_optimizer, "sync": sync}
        dcp.save(state, checkpoint_id=folder / kind)
        made[kind] = sync.state_dict()
        sync.close()
    return made


def _loads(rank: int, layout: Layout, kinds: list[str], folder: Path) -> dict[str, Any]:
    """By kind: the state after loading, what was warned of, and common weights some steps later."""
    made = {}
    for kind in kinds:
        model, optimizer, sync = _begin(layout, KINDS[kind], rank)
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {"model": of_model, "optim": of_optimizer}
        dcp.load(state, checkpoint_id=folder / kind)
        set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=state["optim"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sync.load_checkpoint(folder / kind)
        state_dict = sync.state_dict()
        _train(model, optimizer, rank, range(SAVED, SAVED + MORE))
        with sync.common_weights():
            common = torch.cat(
                [getattr(p, "_local_tensor", p).detach().reshape(-1) for p in model.parameters()]
            )
        made[kind] = state_dict, [str(each.message) for each in caught], common
        sync.close()
    return made


def _merged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One state of all ranks' keys; a key that several have is the same in all."""
    whole: dict[str, Tensor] = {}
    for state in states:
        for key, value in state.items():
            if key in whole and "meta" not in key:
                assert torch.equal(whole[key], value), f"{key}: two ranks save other values of it"
            whole[key] = value
    return whole


def _by_element(states: list[dict[str, Tensor]]) -> dict[tuple[str, str, str], Tensor]:
    """By scope, path and parameter: all elements, of which each was saved once."""
    sizes = {name: param.numel() for name, param in Net().named_parameters()}
    runs: dict[tuple[str, str, str], list[tuple[int, int, Tensor]]] = defaultdict(list)
    for key, value in _merged(states).items():
        scope, path, *rest = key.split("|", 3)
        if rest and not rest[0].startswith("whole"):
            low, high = map(int, rest[0].split(":"))
            runs[scope, path, rest[1]].append((low, high, value))
        elif rest and rest[1] in sizes and value.numel() == sizes[rest[1]] and value.dim():
            runs[scope, path, rest[1]].append((0, value.numel(), value.flatten()))
    found = {}
    for (scope, path, name), parts in runs.items():
        at = 0
        parts.sort(key=lambda run: run[:2])
        for low, high, value in parts:
            assert (low, value.numel()) == (at, high - low), f"{scope}|{path}|{name} at {low}"
            at = high
        assert at == sizes[name], f"{scope}|{path}|{name} ends at {at}"
        found[scope, path, name] = torch.cat([value for *_, value in parts])
    return found


def _sums(states: list[dict[str, Tensor]]) -> dict[tuple[str, str], Tensor]:
    """By path and parameter: the sum of residuals over ranks, in float64."""
    sums: dict[tuple[str, str], Tensor] = {}
    for (scope, path, name), value in _by_element(states).items():
        if path.endswith("residual"):
            assert scope != "all"
            sums[path, name] = sums.get((path, name), 0) + value.double()
    return sums


def _same(before: list[dict[str, Tensor]], after: list[dict[str, Tensor]], kind: str) -> None:
    """Over the same replicas: each element of each rank's state, bit for bit."""
    old, new = _by_element(before), _by_element(after)
    assert old.keys() == new.keys(), (kind, old.keys() ^ new.keys())
    for key, value in old.items():
        assert torch.equal(value, new[key]), (kind, key)


def _sums_stay(before: list[dict[str, Tensor]], after: list[dict[str, Tensor]], kind: str) -> None:
    """Over others: the sums of residuals; and what all ranks have, bit for bit."""
    old, new = _sums(before), _sums(after)
    assert old.keys() == new.keys(), kind
    for key, value in old.items():
        assert float((value - new[key]).abs().max()) <= 1e-6, (kind, key)
    whole, again = _by_element(before), _by_element(after)
    for key, value in whole.items():
        if key[0] == "all":
            assert torch.equal(value, again[key]), (kind, key)


def _goes(tmp_path: Path, saved: Layout, loaded: list[Layout], kinds: list[str]) -> None:
    by_rank = run_ranks(saved[1] * saved[2], _saves, saved, kinds, tmp_path, timeout=300)
    before = {kind: [state[kind] for state in by_rank] for kind in kinds}
    for kind in kinds:  # what lies in the folder is what ranks gave, each key once
        names = [name for name in tensor_names(tmp_path / kind) if name.startswith("sync.")]
        assert sorted(names) == sorted(f"sync.{key}" for key in _merged(before[kind]))
        assert _by_element(before[kind])
    for layout in loaded:
        replicas, shards = layout[1:]
        ours = [
            kind for kind in kinds if "ddp" not in (saved[0], layout[0]) or kind not in IN_THE_AIR
        ]
        made = run_ranks(replicas * shards, _loads, layout, ours, tmp_path, timeout=300)
        for kind in ours:
            after = [state[kind][0] for state in made]
            (_same if replicas == saved[1] else _sums_stay)(before[kind], after, kind)
            for rank, state in enumerate(made):  # replicas hold the same bits again
                assert torch.equal(state[kind][2], made[rank % shards][kind][2]), (kind, rank)
            said = " ".join(made[0][kind][1])
            if kind == "PowerSGD" and shards != saved[2]:
                assert "start anew" in said
            elif replicas == saved[1] and kind != "top-k":
                assert "start anew" not in said, (kind, said)


@pytest.mark.filterwarnings("ignore")
def test_two_sharded_replicas_become_two_whole_ones(tmp_path: Path) -> None:
    _goes(tmp_path, ("fsdp", 2, 2), [("plain", 2, 1)], ["4 bits"])


TWO = [("fsdp", 2, 2), ("fsdp", 2, 1), ("fsdp", 2, 4), ("plain", 2, 1), ("ddp", 2, 1)]
OTHERS = [("fsdp", 1, 2), ("fsdp", 4, 2), ("fsdp", 1, 4), ("fsdp", 4, 1), ("plain", 4, 1)]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        pytest.param(("fsdp", 2, 2), TWO, id="as_many"),
        pytest.param(("fsdp", 2, 2), OTHERS, id="others"),
        pytest.param(("fsdp", 2, 4), [("fsdp", 2, 2), ("plain", 2, 1)], id="from_8"),
        pytest.param(("plain", 2, 1), [("fsdp", 2, 2), ("fsdp", 4, 1)], id="from_plain"),
        pytest.param(("ddp", 2, 1), [("fsdp", 2, 2), ("fsdp", 4, 1)], id="from_ddp"),
    ],
)
def test_a_state_goes_from_one_layout_to_another(
    saved: Layout, loaded: list[Layout], tmp_path: Path
) -> None:
    _goes(tmp_path, saved, loaded, [k for k in KINDS if saved[0] != "ddp" or k not in IN_THE_AIR])
