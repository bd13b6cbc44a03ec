"""Train in a loop of your own, with the two lines that Thinwire adds to it.

    torchrun --standalone --nproc-per-node=2 examples/your_own_loop.py

Each rank reads its own batches, and gradients travel as PowerSGD's thin factors. Without torchrun
it is a single rank.
"""

import argparse
import os
from statistics import fmean

import torch
import torch.distributed as dist

import thinwire
from thinwire.data import Batches, prepare
from thinwire.models.gpt import GPT, GPTConfig

CONTEXT = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a tiny GPT on real English over a thin wire."
    )
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps

    rank, world = (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )  # torchrun sets both
    if world > 1:
        dist.init_process_group("gloo")

    torch.manual_seed(0)
    model = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=8, rank=rank, world=world)

    sync = thinwire.attach(model, optimizer, thinwire.recipes.powersgd(rank=2))  # the first line

    losses = []
    for step in range(steps):
        rows = batches.at(step)
        _, loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()  # the mean over ranks is in .grad
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 25 == 0:
            print(
                (
                    f"step {step + 1:>4}  loss {fmean(losses[-25:]):.3f} nats a byte, the mean of "
                    "25 steps"
                ),
                flush=True,
            )

    report = sync.report()
    sync.close()  # the second line

    if rank == 0:
        print(f"loss {fmean(losses[-25:]):.3f} nats a byte after {steps} steps; ranks: {world}")
        if world > 1:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
