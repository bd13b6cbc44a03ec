"""Shard a model with FSDP2 within each replica, and let a strategy join the replicas.

    torchrun --standalone --nproc-per-node=4 examples/inside_hsdp.py

Four ranks are two replicas of two shards each; two ranks are two replicas of one. Within a replica
FSDP gathers parameters and averages gradients, as always. Every 8 steps each rank sends the change
of its own shards to the ranks that hold the same shards (DiLoCo). Without torchrun it is a single
rank.
"""

import argparse
import os
import tempfile
from statistics import fmean

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import thinwire
from thinwire.data import Batches, prepare
from thinwire.models.gpt import GPT, GPTConfig

CONTEXT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT by DiLoCo over HSDP.")
    parser.add_argument("--steps", type=int, default=64)
    steps = parser.parse_args().steps

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    else:  # a mesh wants a group of one, too
        store = dist.FileStore(f"{tempfile.mkdtemp()}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    replicas = min(world, 2)
    mesh = init_device_mesh(
        "cpu", (replicas, world // replicas), mesh_dim_names=("replicate", "shard")
    )

    torch.manual_seed(0)
    model = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))
    for block in model.blocks:
        fully_shard(block, mesh=mesh["shard"])  # not the whole mesh: FSDP would join replicas, too
    fully_shard(model, mesh=mesh["shard"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=8, rank=rank, world=world)

    losses = []
    with thinwire.attach(model, optimizer, thinwire.recipes.diloco(period=8)) as sync:  # new
        for step in range(steps):
            rows = batches.at(step)
            _, loss = model(rows[:, :-1], rows[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        report = sync.report()

    if rank == 0:
        print(f"loss {fmean(losses[-25:]):.3f} nats a byte after {steps} steps; ranks: {world}")
        if world > 1:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
