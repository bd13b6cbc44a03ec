"""Give Lightning's Trainer a callback, and nothing else.

    torchrun --standalone --nproc-per-node=2 examples/lightning_trainer.py

Gradients travel as PowerSGD's thin factors, inside the DDP that Lightning makes. It clips and
validates as always. Without torchrun it is a single rank.
"""

import argparse
import logging
import os
import warnings

import lightning
import torch
from torch import Tensor

from thinwire import recipes
from thinwire.adapters.lightning import Thinwire
from thinwire.data import prepare
from thinwire.models.gpt import GPT, GPTConfig

CONTEXT = 64


class Language(lightning.LightningModule):
    """A tiny GPT on bytes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gpt = GPT(GPTConfig(context=CONTEXT, layers=2, heads=4, width=64))

    def training_step(self, rows: Tensor, _: int) -> Tensor:
        loss: Tensor = self.gpt(rows[:, :-1], rows[:, 1:])[1]
        return loss

    def validation_step(self, rows: Tensor, _: int) -> None:
        self.log("loss", self.gpt(rows[:, :-1], rows[:, 1:])[1], sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def loader(tokens: Tensor, count: int) -> torch.utils.data.DataLoader[Tensor]:
    """Cut a text into rows, eight to a batch."""
    cut = [tokens[i * CONTEXT : (i + 1) * CONTEXT + 1].long() for i in range(count)]
    return torch.utils.data.DataLoader(cut, batch_size=8)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT in Lightning over a thin wire.")
    parser.add_argument("--steps", type=int, default=64)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")  # of Lightning's: few workers that load, …
    logging.getLogger("lightning").setLevel(logging.ERROR)

    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    callback = Thinwire(recipes.powersgd(rank=2))  # the line, and its place in callbacks=
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if "RANK" in os.environ else "auto",
        max_steps=steps,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(Language(), loader(text.train, 2048), loader(text.held, 32))
    trainer.validate(trainer.lightning_module, loader(text.held, 32), verbose=False)
    loss = float(trainer.callback_metrics["loss"])

    assert callback.sync is not None
    report = callback.sync.report()
    if trainer.is_global_zero:
        print(f"loss {loss:.3f} nats a byte after {steps} steps; ranks: {report.world}")
        if report.world > 1:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )


if __name__ == "__main__":
    main()
