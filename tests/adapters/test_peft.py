"""Adapters by PEFT, and trainers of TRL, through the Trainer's callback: what they train travels,
and the rest of the model stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.adapters import test_hf as hf
from tests.ranks import run_ranks
from thinwire import Strategy

pytest.importorskip("accelerate", reason="pip install 'thinwire[hf]'")
pytest.importorskip("peft", reason="pip install peft")
pytest.importorskip("trl", reason="pip install trl")
pytestmark = pytest.mark.long  # transformers' Trainer takes seconds to load

WORDS = [
    "the",
    "wire",
    "is",
    "thin",
    "and",
    "the",
    "model",
    "is",
    "wide",
    "so",
    "send",
    "less",
    "of",
    "it",
    "each",
    "step",
]


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True)


def trainer_of(folder: Path, strategy: Strategy | None, **settings: Any) -> Any:
    """The Trainer of a small GPT-2 with adapters; `None` is without Thinwire."""
    from peft import get_peft_model

    from thinwire.adapters.hf import Thinwire

    callback = None if strategy is None else Thinwire(strategy)
    return hf.trainer_of(folder, callback, model=get_peft_model(hf.model_of(), lora()), **settings)


def adapters_of(model: torch.nn.Module) -> Tensor:
    trained = [param.detach().flatten() for param in model.parameters() if param.requires_grad]
    return torch.cat(trained)


def by_hand(trainer: Any, strategy: Strategy) -> Tensor:
    """The same run in a loop of one's own, with `attach`."""
    model = trainer.model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    batches = list(trainer.get_train_dataloader())
    with thinwire.attach(model, optimizer, strategy, check_every=None) as sync:
        for step in range(hf.STEPS):
            model(**batches[step % len(batches)]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with sync.common_weights():
            return adapters_of(model)


def _adapters(rank: int, folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    hf.environment(rank)
    seen: dict[str, Any] = {}
    plain, dense = (trainer_of(folder, strategy) for strategy in (None, Strategy()))
    plain.train()
    dense.train()
    seen["dense"] = torch.equal(adapters_of(plain.model), adapters_of(dense.model))
    seen["losses"] = hf.losses(plain) == hf.losses(dense)
    for name, strategy in {"4 bits": hf.FOUR_BITS, "local": hf.LOCAL}.items():
        saves = {"save_strategy": "steps", "save_steps": 6}
        ours = trainer_of(folder / name, strategy, **saves)
        names = [name for name, param in ours.model.named_parameters() if param.requires_grad]
        ours.train()
        mine, hand = adapters_of(ours.model), by_hand(trainer_of(folder, None), strategy)
        seen[f"{name}, to attach"] = float((mine - hand).norm() / hand.norm())
        seen[f"{name}, weights"] = mine
        assert all("lora_" in each for each in names)
        # resumed, with every rank's state
        again = trainer_of(folder / name, strategy, **saves)
        again.train(resume_from_checkpoint=str(folder / name / "checkpoint-6"))
        seen[f"{name}, resumed"] = float((adapters_of(again.model) - mine).norm() / mine.norm())
        # the adapter that is saved is what ranks have in common
        ended = trainer_of(folder, strategy, max_steps=6)
        ended.train()
        saved = load_file(folder / name / "checkpoint-6" / "adapter_model.safetensors")
        there = ended.model.state_dict()
        seen[f"{name}, saved"] = len(saved) == len(names) and all(
            torch.equal(value, there[key.replace(".weight", ".default.weight")])
            for key, value in saved.items()
        )
    return seen


def test_lora_trains_as_in_the_trainers_own_ddp_and_as_with_attach(tmp_path: Path) -> None:
    first, second = run_ranks(hf.WORLD, _adapters, tmp_path, timeout=240)
    assert first["dense"]
    assert first["losses"]
    for name in ("4 bits", "local"):
        near = 0.02 if name == "4 bits" else 1e-5  # DDP's first pass has another bucket layout
        assert first[f"{name}, to attach"] < near
        assert first[f"{name}, resumed"] < (near if name == "4 bits" else 1e-12)
        assert first[f"{name}, saved"]
        assert torch.equal(first[f"{name}, weights"], second[f"{name}, weights"])


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(WORDS)]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def _tuned(rank: int, folder: Path, kind: str) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from thinwire.adapters.hf import Thinwire

    hf.environment(rank)
    texts = [" ".join(WORDS[i % 9 :][: 4 + i % 3]) for i in range(24)]
    if kind == "SFT":
        make, config, rows = SFTTrainer, SFTConfig, {"text": texts}
    else:
        make, config = DPOTrainer, DPOConfig
        rows = {"prompt": texts, "chosen": [" thin wire"] * 24, "rejected": [" wide step"] * 24}
    ends: dict[str, Any] = {}
    for name, strategy in {
        "plain": None,
        "dense": Strategy(),
        "4 bits": hf.FOUR_BITS,
        "local": hf.LOCAL,
    }.items():
        args = config(
            output_dir=str(folder / f"{rank}"),
            per_device_train_batch_size=2,
            max_steps=6,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            gradient_checkpointing=False,
            max_length=16,
            ddp_backend="gloo",
        )
        trainer = make(
            model=hf.model_of(),
            args=args,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer(),
            peft_config=lora(),
            callbacks=[] if strategy is None else [Thinwire(strategy)],
        )
        trainer.train()
        ends[name] = adapters_of(trainer.model)
    return ends


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_trainers_of_trl_carry_a_strategy(kind: str, tmp_path: Path) -> None:
    first, second = run_ranks(hf.WORLD, _tuned, tmp_path, kind, timeout=240)
    assert torch.equal(first["plain"], first["dense"])
    for name, weights in first.items():
        assert torch.equal(weights, second[name])
        assert float((weights - first["plain"]).norm() / first["plain"].norm()) < 0.1
