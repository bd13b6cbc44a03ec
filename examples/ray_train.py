"""Give the function that Ray's workers run two lines; Ray starts the workers itself.

    python examples/ray_train.py

Gradients travel in 4 bits with error feedback, inside the DDP that Ray Train makes. Workers that
Ray starts again would go on from Ray's own checkpoint, residuals included. With `--workers 1` it is
a single rank.
"""

import argparse
import logging
import os
import tempfile

import ray
import ray.train.torch
import torch

from thinwire import Strategy
from thinwire.adapters.ray import attach, checkpoint
from thinwire.data import Batches, prepare
from thinwire.how import two_shot
from thinwire.models.gpt import GPT, GPTConfig
from thinwire.what import feedback, uniform

CONTEXT = 64


def train(config: dict[str, int]) -> None:
    """Train a tiny GPT on bytes: what each of Ray's workers runs."""
    seat = ray.train.get_context()
    rank, world, steps = seat.get_world_rank(), seat.get_world_size(), config["steps"]
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    batches = Batches(text.train, length=CONTEXT + 1, batch=8, rank=rank, world=world)

    torch.manual_seed(0)
    model = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stored = ray.train.get_checkpoint()
    if stored is not None:
        with stored.as_directory() as folder:
            saved = torch.load(f"{folder}/model.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    ddp = ray.train.torch.prepare_model(model)
    strategy = Strategy(what=feedback(uniform(bits=4)), how=two_shot())
    with attach(ddp, optimizer, strategy) as sync:  # the first line
        for step in range(sync.step, steps):
            rows = batches.at(step)
            _, loss = ddp(rows[:, :-1], rows[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step + 1 in (steps // 2, steps):
                told = {"loss": loss.item(), "step": step + 1}
                with checkpoint(sync, told) as folder:  # the second, in place of ray.train.report
                    if rank == 0:
                        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                        torch.save(state, folder / "model.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT in Ray Train over a thin wire.")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray calls nobody
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            address="local", num_cpus=options.workers + 1, include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder,
        )  # fmt: skip
        trainer = ray.train.torch.TorchTrainer(
            train,
            train_loop_config={"steps": options.steps},
            scaling_config=ray.train.ScalingConfig(num_workers=options.workers),
            run_config=ray.train.RunConfig(
                name="thin",
                storage_path=f"{folder}/runs",
                failure_config=ray.train.FailureConfig(max_failures=1),
            ),
        )
        told = trainer.fit().metrics
        ray.shutdown()
    print(
        f"loss {told['loss']:.3f} nats a byte in the batch of step {told['step']}; "
        f"ranks: {options.workers}"
    )
    if options.workers > 1:
        print(
            f"sent {told['thinwire/sent_megabytes']:.3f} MB from each rank, "
            f"{told['thinwire/times_fewer_bytes']:.1f}x fewer than dense fp32"
        )


if __name__ == "__main__":
    main()
