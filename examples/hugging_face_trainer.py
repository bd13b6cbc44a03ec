"""Give Hugging Face's Trainer a callback, and nothing else.

    torchrun --standalone --nproc-per-node=2 examples/hugging_face_trainer.py

Each rank takes local steps, and every 8 steps the mean change goes to an outer optimiser (DiLoCo).
The Trainer clips, validates and logs as always; validation sees the weights that ranks share.
Without torchrun it is a single rank.
"""

import argparse
import os
import tempfile

from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from thinwire import recipes
from thinwire.adapters.hf import Thinwire
from thinwire.data import prepare

CONTEXT = 64


def rows(tokens: Tensor, count: int) -> list[dict[str, Tensor]]:
    """Cut a text into rows; nobody predicts a row's first byte."""
    cut = [tokens[i * CONTEXT : (i + 1) * CONTEXT].long() for i in range(count)]
    return [{"input_ids": row, "labels": row} for row in cut]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny GPT-2 in the Trainer, by DiLoCo.")
    parser.add_argument("--steps", type=int, default=64)
    steps = parser.parse_args().steps

    set_seed(0)  # of the first weights; the Trainer seeds what it draws itself
    _, text = prepare("bundled", "byte", ["<|endoftext|>"])
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=64, n_positions=CONTEXT, vocab_size=257,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            seed=0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo" if "RANK" in os.environ else None,
        )
        callback = Thinwire(recipes.diloco(period=8))  # the line, and its place in callbacks=
        trainer = Trainer(
            GPT2LMHeadModel(config),
            args,
            train_dataset=rows(text.train, 2048),
            eval_dataset=rows(text.held, 32),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]

    assert callback.sync is not None
    report = callback.sync.report()
    if trainer.is_world_process_zero():
        print(f"loss {loss:.3f} nats a byte after {steps} steps; ranks: {report.world}")
        if report.world > 1:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )


if __name__ == "__main__":
    main()
