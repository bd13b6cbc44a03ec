"""Keep a script that uses DistributedDataParallel, and add one line to it.

    torchrun --standalone --nproc-per-node=2 examples/inside_ddp.py

Gradients travel as PowerSGD's thin factors, from DDP's own buckets. Two passes add up to a step:
the first is in `no_sync()`, as in any script. Nothing has to be closed. Without torchrun it is a
single rank.
"""

import argparse
import os
import tempfile
from contextlib import nullcontext
from statistics import fmean

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import thinwire
from thinwire.data import Batches, prepare
from thinwire.models.gpt import GPT, GPTConfig

CONTEXT, PASSES = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT in DDP over a thin wire.")
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    else:  # DDP wants a group of one, too
        store = dist.FileStore(f"{tempfile.mkdtemp()}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    torch.manual_seed(0)
    model = DistributedDataParallel(GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=4, rank=rank, world=world)

    sync = thinwire.ddp_hook(model, thinwire.recipes.powersgd(rank=2), optimizer=optimizer)  # new

    losses = []
    for step in range(steps):
        for micro in range(PASSES):
            rows = batches.at(step * PASSES + micro)
            with model.no_sync() if micro < PASSES - 1 else nullcontext():
                _, loss = model(rows[:, :-1], rows[:, 1:])
                (loss / PASSES).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    report = sync.report()
    if rank == 0:
        print(f"loss {fmean(losses[-25:]):.3f} nats a byte after {steps} steps; ranks: {world}")
        if world > 1:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )


if __name__ == "__main__":
    main()
