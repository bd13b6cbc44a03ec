"""ZeRO++ inside FSDP2, on real ranks: bits, bytes, equal weights, lost ranks, the loss."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tests.ranks import run_ranks
from tests.sharding import gpt, mlp, payload, shard_sizes, train
from tests.shards import whole_of
from thinwire.adapters.zeropp import Traffic, thin_collectives
from thinwire.core import Coder
from thinwire.data import Batches, prepare
from thinwire.errors import AttachError, DisagreementError, FlightError, RankLostError
from thinwire.what import cast, identity, uniform

EXACT: dict[str, Coder] = {"weights": identity(), "gradients": identity()}
TRIO: dict[str, Coder] = {"weights": uniform(8), "gradients": uniform(4)}
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
QUICK = timedelta(seconds=4)

# -- exact codecs are FSDP2


def _beside_torch(rank: int, variants: list[dict[str, Any]], passes: int) -> list[float]:
    differences = []
    for options in variants:
        theirs, model = train(mlp(**options), rank, passes=passes), mlp(**options)
        with thin_collectives(model, **EXACT):
            ours = train(model, rank, passes=passes)
        differences.append(float((theirs - ours).abs().max()))
    return differences


@pytest.mark.parametrize(
    "world", [pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long), 4]
)
def test_exact_codecs_are_fsdp2_bit_for_bit(world: int) -> None:
    """Uneven rows, clipping, both ways of resharding, accumulation without messages, bf16."""
    variants = [{}, {"reshard_after_forward": False}, {"reshard_after_forward": True}]
    for differences in run_ranks(world, _beside_torch, [*variants, {"mp_policy": BF16}], 2):
        assert differences == [0.0] * 4


def _hsdp(rank: int) -> tuple[float, Traffic]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    theirs, model = train(mlp(mesh=mesh), rank), mlp(mesh=mesh)
    with thin_collectives(model, **EXACT) as thin:
        return float((theirs - train(model, rank)).abs().max()), thin.report()


def test_in_hsdp_the_all_reduce_between_replicas_stays_torchs_own() -> None:
    for difference, report in run_ranks(4, _hsdp):
        assert difference == 0.0
        assert report.sent_bytes == report.dense_bytes > 0


def _given_back(rank: int) -> float:
    theirs, model = train(mlp(), rank), mlp()
    words = "0 has a custom all-gather already"
    with thin_collectives(model, **TRIO), pytest.raises(AttachError, match=words):
        thin_collectives(model, **TRIO)
    thin = thin_collectives(model, **TRIO)
    thin.close()
    thin.close()
    return float((theirs - train(model, rank)).abs().max())


def test_closed_it_is_torchs_own_again() -> None:
    assert run_ranks(2, _given_back) == [0.0, 0.0]


def _divided(rank: int) -> float:
    """A factor of the user's own, which gloo itself cannot apply in a reduce-scatter."""
    models = [mlp(), mlp()]
    for module in models[0].modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(3.0)
    with thin_collectives(models[0], **EXACT), thin_collectives(models[1], **EXACT):
        for model in models:
            model(torch.ones(2, 6)).sum().backward()
    factored, mean = (
        torch.cat([p.grad.to_local().flatten() for p in model.parameters()]) for model in models
    )
    return float((factored - mean * 2 / 3).abs().max())


def test_a_divide_factor_is_applied() -> None:
    assert max(run_ranks(2, _divided)) < 1e-6


# -- equal weights, exact masters


def _gathered(rank: int, node_size: int) -> tuple[Tensor, float, bool]:
    """All gathered weights; how far they are from the exact ones; whether shards are as before."""
    after = node_size if node_size > 1 else None
    model = mlp(reshard_after_forward=after)
    exact, shards = whole_of(model), [p.to_local().clone() for p in model.parameters()]
    gathered: list[Tensor] = []
    with thin_collectives(model, **TRIO, node_size=node_size):
        for layer in model:
            if isinstance(layer, FSDPModule):
                layer.unshard()
                gathered += [p.detach().clone().flatten() for p in layer.parameters()]
                layer.reshard()
        model(torch.ones(2, 6)).sum().backward()
    kept = all(
        torch.equal(a, b.to_local()) for a, b in zip(shards, model.parameters(), strict=True)
    )
    flat = torch.cat(gathered)
    return flat, float((flat - exact).abs().max()), kept


@pytest.mark.parametrize(("world", "node_size"), [(3, 1), (4, 2)])
def test_all_ranks_compute_with_equal_bits_and_shards_stay_exact(
    world: int, node_size: int
) -> None:
    results = run_ranks(world, _gathered, node_size)
    for flat, off, kept in results:
        assert torch.equal(flat, results[0][0])
        assert 0 < off < 0.41 / 127  # half a step of 8 bits, of weights up to 1/sqrt(6)
        assert kept


def _passes(rank: int, after: int | None) -> float:
    """How far the gradient of the input is from that of the forward pass's weights."""
    seen: list[Tensor] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.weight.detach().clone())
            return super().forward(x)

    torch.manual_seed(0)
    layer = Watched(6, 7)
    model = nn.Sequential(fully_shard(layer, reshard_after_forward=after or True), nn.Tanh())
    fully_shard(model)
    x = torch.randn(3, 6, requires_grad=True)
    with thin_collectives(model, **TRIO, node_size=after or 1) as thin:
        out = model(x)
        out.sum().backward()
        assert (thin.report().secondary_bytes > 0) == (after is not None)
    assert x.grad is not None
    return float((x.grad - (1 - out.detach().square()) @ seen[0]).abs().max())


@pytest.mark.parametrize("after", [None, 2])
def test_the_backward_pass_has_the_weights_of_the_forward_pass(after: int | None) -> None:
    assert max(run_ranks(4, _passes, after)) < 1e-6  # another code would be 1e-3 off


# -- bytes


def _traffic(
    rank: int, codecs: dict[str, Coder], node_size: int, secondary: bool, policy: Any
) -> tuple[Traffic, list[int]]:
    options = {"mp_policy": policy} if policy else {}
    model = mlp(reshard_after_forward=node_size if secondary else True, **options)
    with thin_collectives(model, **codecs, node_size=node_size) as thin:
        train(model, rank, steps=2)
        return thin.report(), shard_sizes(model)


@pytest.mark.parametrize(
    ("world", "node_size", "secondary"), [(3, 1, False), (4, 2, False), (4, 2, True)]
)
@pytest.mark.parametrize("policy", [None, BF16], ids=["fp32", "bf16"])
def test_bytes_are_those_of_the_closed_form(
    world: int, node_size: int, secondary: bool, policy: Any
) -> None:
    """K - 1 payloads for each gather of weights and each sum of gradients; the backward pass has a
    gather of its own, or one inside the node, as it is."""
    weights, gradients, nodes = TRIO["weights"], TRIO["gradients"], world // node_size
    item = 2 if policy else 4
    steps, gathers = 2, 1 if secondary else 2
    for report, sizes in run_ranks(world, _traffic, TRIO, node_size, secondary, policy):
        assert len(sizes) == 3
        eight = steps * gathers * sum(payload(weights, numel) for numel in sizes)
        four = steps * sum(payload(gradients, numel) for numel in sizes)
        kept = steps * (node_size - 1) * nodes * sum(sizes) * item if secondary else 0
        assert report.weights_bytes == (world - 1) * eight
        assert report.gradients_bytes == (world - 1) * four
        assert report.secondary_bytes == kept
        assert report.between_nodes_bytes == (nodes - 1) * (eight + four)
        dense = (world - 1) * steps * sum(sizes) * (gathers * item + 4) + kept
        assert report.dense_bytes == dense
        assert report.ratio == dense / (report.weights_bytes + report.gradients_bytes + kept)
        assert report.waited_s > 0


def _one_of_two(rank: int) -> list[tuple[float, float]]:
    sent = []
    for name in ("weights", "gradients"):
        model = mlp()
        with thin_collectives(model, **{name: cast("bf16")}) as thin:
            train(model, rank)
            sent.append((thin.report().weights_bytes, thin.report().gradients_bytes))
    return sent


def test_what_has_no_codec_stays_torchs_own() -> None:
    for (weights, none), (nothing, gradients) in run_ranks(2, _one_of_two):
        assert none == nothing == 0
        assert min(weights, gradients) > 0


# -- ranks that differ, are late, or go


def _unlike(rank: int) -> list[str]:
    texts = []
    for arguments, error in (
        ({"weights": uniform(8 - rank)}, DisagreementError),
        ({"weights": uniform(8), "gradients": uniform(4), "seed": rank}, DisagreementError),
        ({"weights": "eight bits" if rank else uniform(8)}, AttachError),
        ({"weights": uniform(8), "node_size": 3}, AttachError),
    ):
        with pytest.raises(error) as caught:
            thin_collectives(mlp(), **arguments)  # type: ignore[arg-type]
        texts.append(str(caught.value))
    with pytest.raises(AttachError) as caught:
        thin_collectives(mlp(reshard_after_forward=2), weights=uniform(8))
    return [*texts, str(caught.value)]


def test_ranks_that_differ_are_refused_on_every_rank() -> None:
    for texts in run_ranks(4, _unlike):
        codec, seed, problem, size, secondary = texts
        assert "weights differs" in codec
        assert "seed differs" in seed
        assert "rank 1: weights='eight bits' is no codec" in problem
        assert "rank 0" not in problem
        assert "a shard group of 4 ranks is no multiple of it" in size
        assert "keeps weights among 2 ranks, and node_size=1" in secondary


def _left(rank: int) -> str:
    model = mlp()
    thin = thin_collectives(model, **TRIO, timeout=QUICK)
    train(model, rank)
    if rank == 1:
        thin.close()
        return ""
    with pytest.raises(RankLostError) as error:
        train(model, rank)
    return str(error.value)


def test_a_rank_that_leaves_is_named() -> None:
    texts = run_ranks(3, _left)
    for text in (texts[0], texts[2]):
        assert "rank 1" in text
        assert "weights of 0" in text


def _killed(rank: int) -> Any:
    model = mlp()
    thin_collectives(model, **TRIO, timeout=QUICK)
    train(model, rank)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankLostError) as error:
        train(model, rank)
    time.sleep(1)
    return error.value.ranks


@pytest.mark.long
def test_a_rank_that_dies_is_named() -> None:
    assert run_ranks(3, _killed) == [(1,), -signal.SIGKILL, (1,)]


def _late(rank: int) -> str:
    model = mlp()
    thin_collectives(model, **TRIO, timeout=QUICK)
    train(model, rank)
    if rank == 1:
        time.sleep(12)
        return ""
    with pytest.raises(FlightError) as error:
        train(model, rank)
    return str(error.value)


@pytest.mark.long
def test_a_rank_that_does_not_come_is_in_the_message() -> None:
    text = run_ranks(2, _late)[0]
    assert "within 4 s" in text
    assert "rank 1: adding gradients of 0" in text


# -- the loss

STEPS, CONTEXT = 300, 32


def _losses(rank: int, steps: int, codecs: dict[str, Coder], after: int | None) -> list[float]:
    """The mean over ranks of each step's loss, of a tiny GPT on bundled text."""
    world = dist.get_world_size()
    model = gpt(CONTEXT, reshard_after_forward=after)
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=4, rank=rank, world=world)
    if codecs:
        thin_collectives(model, **codecs, node_size=after or 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, 1 - 0.95 * step / STEPS)
    )
    losses = []
    for step in range(steps):
        rows = batches.at(step)
        _, loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    return (mean / world).tolist()


@pytest.mark.long
def test_after_300_steps_the_trio_has_the_loss_of_dense_fsdp2() -> None:
    """All three, on 4 ranks as 2 nodes of 2; the mean of the last 50 steps."""
    dense, thin = (
        run_ranks(4, _losses, STEPS, codecs, after, timeout=600)[0]
        for codecs, after in (({}, None), (TRIO, 2))
    )
    last, due = (sum(losses[-50:]) / 50 for losses in (thin, dense))
    assert due < 0.75 * dense[0], "the model must have learned something"
    assert abs(last / due - 1) < 0.005, (last, due)


def test_the_trio_trains_for_some_steps() -> None:
    dense, thin = (
        run_ranks(4, _losses, 3, codecs, after)[0] for codecs, after in (({}, None), (TRIO, 2))
    )
    for a, b in zip(dense, thin, strict=True):
        assert abs(a - b) < 0.02 * a
