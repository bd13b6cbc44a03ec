"""Keep a script that uses FSDP2, and add one line to it: ZeRO++.

    torchrun --standalone --nproc-per-node=2 examples/zeropp.py

Gathered weights travel in 8 bits and gradients in 4; the optimiser's own weights stay exact. Two
passes add up to a step: the first sends no gradients. Nothing has to be closed. Without torchrun it
is a single rank, which sends nothing.
"""

import argparse
import os
import tempfile
from statistics import fmean

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from thinwire.adapters.zeropp import thin_collectives
from thinwire.data import Batches, prepare
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.what import uniform

CONTEXT, PASSES = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT in FSDP2 over a thin wire.")
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    else:  # FSDP wants a group of one, too
        store = dist.FileStore(f"{tempfile.mkdtemp()}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    torch.manual_seed(0)
    model = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=4, rank=rank, world=world)

    thin = thin_collectives(model, weights=uniform(8), gradients=uniform(4))  # new

    losses = []
    for step in range(steps):
        for micro in range(PASSES):
            rows = batches.at(step * PASSES + micro)
            model.set_requires_gradient_sync(micro == PASSES - 1)
            _, loss = model(rows[:, :-1], rows[:, 1:])
            (loss / PASSES).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    report = thin.report()
    if rank == 0:
        print(f"loss {fmean(losses[-25:]):.3f} nats a byte after {steps} steps; ranks: {world}")
        if world > 1:
            print(
                f"sent {report.weights_bytes:,.0f} bytes of weights and "
                f"{report.gradients_bytes:,.0f} of gradients from each rank, "
                f"{report.ratio:.1f}x fewer than dense fp32"
            )


if __name__ == "__main__":
    main()
