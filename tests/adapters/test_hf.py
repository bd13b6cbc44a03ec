"""A strategy in Hugging Face's Trainer: dense it is the Trainer's own DDP to the bit, it trains as
`attach` does, and it goes on from the Trainer's checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import thinwire
from tests.engine.models import weights_of
from tests.ranks import run_ranks
from thinwire import Strategy, recipes
from thinwire.errors import CheckpointError
from thinwire.how import two_shot
from thinwire.on import deltas
from thinwire.what import feedback, uniform
from thinwire.when import every

pytest.importorskip("accelerate", reason="pip install 'thinwire[hf]'")
pytestmark = pytest.mark.long  # transformers' Trainer takes seconds to load

FOUR_BITS = Strategy(what=feedback(uniform(bits=4)), how=two_shot())
LOCAL = Strategy(every(3), on=deltas())
STEPS, WORLD = 12, 2


def model_of() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=64, n_positions=16, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def rows() -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (96, 16), generator=draws)
    labels = tokens.clone()
    labels[:, 0] = -100  # nobody predicts the first: the Trainer divides by the labels that count
    return [{"input_ids": row, "labels": own} for row, own in zip(tokens, labels, strict=True)]


def environment(rank: int) -> None:
    """What torchrun sets, by which accelerate finds the group that is there."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def trainer_of(folder: Path, callback: Any, *, model: Any = None, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        logging_steps=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        **(
            {"save_strategy": "no", "max_steps": STEPS, "learning_rate": 0.1, "report_to": []}
            | settings
        ),
    )
    callbacks = [] if callback is None else [callback]
    data = rows()
    model = model_of() if model is None else model
    return Trainer(model, args, train_dataset=data, eval_dataset=data[:8], callbacks=callbacks)


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def by_hand(trainer: Any, strategy: Strategy, passes: int) -> Tensor:
    """The same run in a loop of one's own, with `attach`: the Trainer's batches and optimiser."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = list(trainer.get_train_dataloader())
    with thinwire.attach(model, optimizer, strategy, check_every=None) as sync:
        micro = 0
        for _ in range(STEPS):
            total = 0
            for k in range(passes):
                loss = model(**batches[micro % len(batches)]).loss / passes
                if strategy.on.clock == "backward" and k < passes - 1:
                    total = total + loss
                else:
                    (total + loss).backward()
                micro += 1
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            return weights_of(model)


def _trained(rank: int, folder: Path) -> dict[str, Any]:
    from thinwire.adapters.hf import Thinwire

    environment(rank)
    seen: dict[str, Any] = {}
    for passes in (1, 2):
        settings = {"gradient_accumulation_steps": passes}
        plain = trainer_of(folder, None, **settings)
        plain.train()
        dense = trainer_of(folder, Thinwire(check_every=1), **settings)
        dense.train()
        seen[f"dense, {passes}"] = (
            torch.equal(weights_of(plain.model), weights_of(dense.model)),
            losses(plain) == losses(dense),
        )
        for name, strategy in {"4 bits": FOUR_BITS, "local": LOCAL}.items():
            ours = trainer_of(folder, Thinwire(strategy), **settings)
            ours.train()
            hand = by_hand(trainer_of(folder, None, **settings), strategy, passes)
            mine = weights_of(ours.model)
            seen[f"{name}, {passes}"] = float((mine - hand).norm() / hand.norm())
            seen[f"{name}, {passes}, weights"] = mine
        logged = [line for line in ours.state.log_history if "loss" in line]
        seen["logged"] = sorted(key for key in logged[-1] if key.startswith("thinwire/"))
    return seen


def test_it_trains_as_the_trainer_and_as_attach(tmp_path: Path) -> None:
    by_rank = run_ranks(WORLD, _trained, tmp_path, timeout=240)
    for seen in by_rank:
        for passes in (1, 2):
            assert seen[f"dense, {passes}"] == (True, True)
            for name in ("4 bits", "local"):
                # DDP's first pass has another bucket layout, and AdamW amplifies the rounding
                assert seen[f"{name}, {passes}"] < (0.02 if name == "4 bits" else 1e-5)
                key = f"{name}, {passes}, weights"
                assert torch.equal(seen[key], by_rank[0][key]), "ranks end with the same weights"
        assert seen["logged"] == [
            "thinwire/exposed_seconds",
            "thinwire/sent_megabytes",
            "thinwire/skipped_steps",
            "thinwire/times_fewer_bytes",
        ]


def _resumed(rank: int, folder: Path) -> dict[str, Any]:
    from thinwire.adapters.hf import Thinwire

    environment(rank)
    seen: dict[str, Any] = {}
    for name, strategy in {"4 bits": FOUR_BITS, "local": LOCAL}.items():
        saves = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
        whole = trainer_of(folder / name, Thinwire(strategy), **saves)
        whole.train()
        again = trainer_of(folder / name, Thinwire(strategy), **saves)
        again.train(resume_from_checkpoint=str(folder / name / "checkpoint-5"))
        one, other = weights_of(whole.model), weights_of(again.model)
        seen[name] = float((one - other).norm() / one.norm())
    # what is saved is what ranks have in common, as a run that ends there leaves it
    from safetensors.torch import load_file

    saved = load_file(folder / "local" / "checkpoint-5" / "model.safetensors")
    ended = trainer_of(folder, Thinwire(LOCAL), max_steps=5)
    ended.train()
    there = ended.model.state_dict()
    seen["saved"] = all(torch.equal(value, there[name]) for name, value in saved.items())
    # a checkpoint without the strategy's state
    elsewhere = trainer_of(folder / "plain", None, save_strategy="steps", save_steps=5)
    elsewhere.train()
    with pytest.raises(CheckpointError, match="holds no state of a strategy"):
        trainer_of(folder / "plain", Thinwire(FOUR_BITS)).train(
            resume_from_checkpoint=str(folder / "plain" / "checkpoint-5")
        )
    return seen


def test_it_goes_on_from_the_trainers_checkpoint(tmp_path: Path) -> None:
    for seen in run_ranks(WORLD, _resumed, tmp_path, timeout=240):
        assert seen["local"] == 0
        assert seen["saved"]
        # a new DDP has another bucket layout in its first pass, and so other blocks of 256 values
        assert seen["4 bits"] < 0.01
        state = json.loads((tmp_path / "4 bits/checkpoint-5/trainer_state.json").read_text())
        assert state["global_step"] == 5


def test_alone_it_attaches_to_the_bare_model(tmp_path: Path) -> None:
    from thinwire.adapters.hf import Thinwire

    trainer = trainer_of(tmp_path, Thinwire(recipes.powersgd(rank=1)))
    trainer.train()
    assert len(losses(trainer)) == STEPS
    assert losses(trainer)[-1] < losses(trainer)[0]


def _steps_between(rank: int, folder: Path) -> str:
    from thinwire.adapters.hf import Thinwire
    from thinwire.errors import NotLandedError

    environment(rank)
    with pytest.raises(NotLandedError) as error:
        trainer_of(folder, Thinwire(Strategy(every(2)))).train()
    return str(error.value)


def test_a_schedule_that_the_trainer_does_not_follow_is_refused(tmp_path: Path) -> None:
    for text in run_ranks(WORLD, _steps_between, tmp_path):
        assert "no mean has landed" in text


def _dense(rank: int, folder: Path) -> bool:
    from thinwire.adapters.hf import Thinwire

    environment(rank)
    plain, ours = (trainer_of(folder, each) for each in (None, Thinwire(check_every=1)))
    plain.train()
    ours.train()
    return torch.equal(weights_of(plain.model), weights_of(ours.model))


def test_on_three_ranks_dense_is_the_trainers_own(tmp_path: Path) -> None:
    assert run_ranks(3, _dense, tmp_path, timeout=240) == [True] * 3
