"""Train any Hugging Face model in a plain torch loop, by local steps whose deltas travel in 4 bits.

    torchrun --standalone --nproc-per-node=2 examples/hugging_face_model.py

The strategy is written out as its four slots: DiLoCo's (Douillard et al. 2023, arXiv:2311.08105)
with another `what`. Between two rounds each rank has weights of its own, so the loop validates and
saves the common ones. Without torchrun it is a single rank.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import thinwire
from thinwire.data import Batches, prepare, validation_windows
from thinwire.how import two_shot
from thinwire.on import deltas, nesterov
from thinwire.what import uniform
from thinwire.when import every

CONTEXT = 64


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    model.eval()
    loss = model(input_ids=windows, labels=windows).loss  # the model shifts the labels itself
    model.train()
    return float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a tiny GPT-2 in local steps whose deltas travel in 4 bits."
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--out", default="runs/hugging_face_model", help="where save_pretrained writes"
    )
    options = parser.parse_args()
    logging.set_verbosity_error()

    rank, world = (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )  # torchrun sets both
    if world > 1:
        dist.init_process_group("gloo")

    tokenizer, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT, batch=8, rank=rank, world=world)
    windows = validation_windows(text.held, length=CONTEXT, windows=32)

    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    sizes = {
        "vocab_size": len(tokenizer),
        "n_positions": CONTEXT,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 64,
    }
    model = GPT2LMHeadModel(
        GPT2Config(
            **sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=end, eos_token_id=end
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    strategy = thinwire.Strategy(
        when=every(10),  # ten steps on each rank, then a round
        what=uniform(bits=4),
        how=two_shot(),
        on=deltas(
            outer=nesterov(lr=0.7, momentum=0.9)
        ),  # a momentum step on what ten steps have changed, the mean over ranks
    )
    with thinwire.attach(model, optimizer, strategy) as sync:
        for step in range(options.steps):
            rows = batches.at(step)
            model(input_ids=rows, labels=rows).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # counts as a step of the schedule; every tenth ends with a round
            optimizer.zero_grad()
            if (step + 1) % 20 == 0:
                with sync.common_weights():
                    loss = held_out_loss(model, windows)
                if rank == 0:
                    print(f"step {step + 1:>4}  held-out loss {loss:.3f} nats a token", flush=True)
        with sync.common_weights():
            if rank == 0:
                model.save_pretrained(options.out)

    if rank == 0:
        again = GPT2LMHeadModel.from_pretrained(options.out)
        print(
            f"read back from {options.out}: held-out loss {held_out_loss(again, windows):.3f} "
            f"nats a token; ranks: {world}"
        )
        if world > 1:
            print(
                f"sent {sync.report().sent_bytes:,.0f} bytes from each rank, "
                f"{sync.report().ratio:.1f}x fewer than dense fp32"
            )
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
