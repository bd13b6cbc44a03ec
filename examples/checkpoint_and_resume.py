"""Stop in the middle of training and resume; the loss continues bit for bit.

    torchrun --standalone --nproc-per-node=2 examples/checkpoint_and_resume.py

It trains twice: once without a stop, and once to the middle. From there another model, optimiser
and syncer continue from what torch's distributed checkpoint (DCP) has on disk. The stop comes at a
bad moment: every rank has weights of its own, and a fragment is in flight. Without torchrun it is a
single rank.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import thinwire
from thinwire.data import Batches, prepare
from thinwire.models.gpt import GPT, GPTConfig

CONTEXT = 64
STRATEGY = thinwire.recipes.streaming_diloco(period=8, fragments=2, tau=2, lr=0.7)


def train(
    batches: Batches, steps: range, seed: int, load: Path | None = None, save: Path | None = None
) -> tuple[list[float], Tensor]:
    """Train these steps; return their losses on this rank, and its weights at the end."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if load is not None:
        weights, moments = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=load)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)

    losses = []
    with thinwire.attach(model, optimizer, STRATEGY) as sync:
        if load is not None:
            sync.load_checkpoint(load)  # last: what differs from rank to rank is in it
        for step in steps:
            rows = batches.at(
                step
            )  # a function of the step, so there is nothing of the data to save
            _, loss = model(rows[:, :-1], rows[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        if save is not None:
            weights, moments = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": moments, "sync": sync}, checkpoint_id=save)
    return losses, torch.cat([param.detach().flatten() for param in model.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Show that a run that was stopped and resumed is the run that never stopped."
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/checkpoint_and_resume"))
    options = parser.parse_args()
    middle = options.steps // 2 + 1

    rank, world = (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )  # torchrun sets both
    if world > 1:
        dist.init_process_group("gloo")
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=8, rank=rank, world=world)

    never, own = train(batches, range(options.steps), seed=0)
    first, _ = train(batches, range(middle), seed=0, save=options.out)
    rest, own_again = train(
        batches, range(middle, options.steps), seed=1, load=options.out
    )  # another start, which must not show

    same = first + rest == never and torch.equal(own, own_again)
    if rank == 0:
        print(f"stopped after {middle} of {options.steps} steps; ranks: {world}")
        for step in range(middle - 2, middle + 3):
            print(
                f"step {step + 1:>4}  loss {never[step]:.3f} never stopped, "
                f"{(first + rest)[step]:.3f} stopped and resumed"
            )
    for turn in range(world):
        if turn == rank:
            print(
                (
                    f"rank {rank}: losses and weights are "
                    f"{'the same, bit for bit' if same else 'NOT the same'}"
                ),
                flush=True,
            )
        if world > 1:
            dist.barrier()
    if world > 1:
        dist.destroy_process_group()
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
