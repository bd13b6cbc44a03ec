"""FSDP's two collectives as flights, without processes: values, bytes, order, levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thinwire.adapters.sharded import gather_bytes, gather_shards, levels, reduce_shards, shard_spec
from thinwire.core import Coder, RankContext, Spec
from thinwire.drive.local import run
from thinwire.what import cast, hadamard, identity, uniform

NUMEL = 300  # no multiple of a block
SIZES = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (6, 3), (8, 2)]
CODECS: list[Coder] = [
    identity(),
    uniform(8),
    uniform(4),
    cast("bf16"),
    uniform(4, rounding="stochastic"),
    hadamard(64) >> uniform(4),
]


def contexts(world: int) -> list[RankContext]:
    return [RankContext(rank, tuple(range(world)), 3, 0, "m") for rank in range(world)]


def specs(world: int, like: Tensor) -> list[Spec]:
    return [shard_spec("m", owner, like, NUMEL) for owner in range(world)]


def values(world: int, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(world, rows * NUMEL, generator=draws).to(dtype)


def gathered(
    codec: Coder, x: Tensor, node_size: int, sent: dict[int, float] | None = None
) -> list[Tensor]:
    """What each rank's buffer holds after a gather in which its own shard lies in the buffer."""
    world = len(x)
    buffers = [torch.full((world * NUMEL,), torch.nan, dtype=x.dtype) for _ in range(world)]
    owns = [buffer.chunk(world)[rank] for rank, buffer in enumerate(buffers)]
    for own, row in zip(owns, x, strict=True):
        own.copy_(row)
    done = run(
        {
            ctx.rank: gather_shards(
                codec, owns[ctx.rank], buffers[ctx.rank], specs(world, x), ctx, node_size
            )
            for ctx in contexts(world)
        },
        sent,
    )
    return [done[rank] for rank in range(world)]


@pytest.mark.parametrize(("world", "node_size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_an_exact_gather_brings_every_shard(world: int, node_size: int, dtype: torch.dtype) -> None:
    x = values(world, 1, dtype)
    for buffer in gathered(identity(), x, node_size):
        assert torch.equal(buffer, x.flatten())


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_all_ranks_gather_equal_bits_in_one_level_or_two(codec: Coder) -> None:
    """Also the shards of its own, which a rank has exactly: it decodes them, too."""
    x = values(4, 1)
    one, two = gathered(codec, x, 1), gathered(codec, x, 2)
    assert all(torch.equal(one[0], each) for each in (*one, *two))
    assert torch.allclose(one[0], x.flatten(), atol=0.6)
    assert torch.equal(one[0], x.flatten()) == (not codec.traits.lossy)


def reduced(
    codec: Coder, x: Tensor, node_size: int, sent: dict[int, float] | None = None
) -> list[Tensor]:
    world = len(x)
    done = run(
        {
            ctx.rank: reduce_shards(codec, x[ctx.rank], specs(world, x), ctx, node_size)
            for ctx in contexts(world)
        },
        sent,
    )
    return [done[rank] for rank in range(world)]


@pytest.mark.parametrize(("world", "node_size"), SIZES)
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_each_rank_has_its_shard_of_the_sum(codec: Coder, world: int, node_size: int) -> None:
    x = values(world, world)
    before = x.clone()
    expected = x.double().sum(0).chunk(world)
    off = 1e-5 if not codec.traits.lossy else 0.7 * world
    for shard, due in zip(reduced(codec, x, node_size), expected, strict=True):
        assert shard.dtype == torch.float32
        assert float((shard.double() - due).abs().max()) < off
    assert torch.equal(x, before), "FSDP's buffer stays as it is"


def test_a_sum_is_taken_in_the_order_of_gloos_ring() -> None:
    """The rank before first, the own part last: bits are those of torch's own on gloo."""
    x = values(4, 4)
    for rank, shard in enumerate(reduced(identity(), x, 1)):
        a, b, c, own = (x[(rank - k) % 4].chunk(4)[rank] for k in (1, 2, 3, 4))
        assert torch.equal(shard, ((a + b) + c) + own)


def test_bf16_parts_are_added_in_float32() -> None:
    x = values(4, 4, torch.bfloat16)
    for rank, shard in enumerate(reduced(identity(), x, 1)):
        assert torch.allclose(shard, x.float().sum(0).chunk(4)[rank], atol=1e-6)


@pytest.mark.parametrize(("world", "node_size"), SIZES)
def test_bytes_are_all_but_one_payloads_either_way(world: int, node_size: int) -> None:
    codec = uniform(4)
    due = (world - 1) * codec.nbytes(shard_spec("m", 0, torch.empty(0), NUMEL))
    sent: dict[int, float] = {}
    gathered(codec, values(world, 1), node_size, sent)
    assert sent == dict.fromkeys(range(world), due)
    sent = {}
    reduced(codec, values(world, world), node_size, sent)
    assert sent == dict.fromkeys(range(world), due)


def test_a_node_gathers_what_it_has_as_it_is() -> None:
    inside = levels(contexts(4)[2], 2)[0].group
    x = values(2, 1, torch.bfloat16)
    buffers = {rank: torch.zeros(2 * NUMEL, dtype=x.dtype) for rank in inside}
    sent: dict[int, float] = {}
    flights = {}
    for place, rank in enumerate(inside):
        own = buffers[rank].chunk(2)[place]
        own.copy_(x[place])
        flights[rank] = gather_bytes(own, buffers[rank], RankContext(rank, inside, 0, 0))
    run(flights, sent)
    assert all(torch.equal(buffer, x.flatten()) for buffer in buffers.values())
    assert sent == dict.fromkeys(inside, 2 * NUMEL)


def test_stochastic_rounding_draws_anew_for_each_step_and_shard() -> None:
    codec = uniform(2, rounding="stochastic")
    x = torch.full((2, 2 * NUMEL), 0.3)
    x[:, ::NUMEL] = 1.0  # so that 0.3 lies between two levels
    first = reduced(codec, x, 1)
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, reduced(codec, x, 1), strict=True))
