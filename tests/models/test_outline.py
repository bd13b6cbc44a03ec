"""First weights by blocks, and saved ones by rows, are those of the whole model bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.train.runs import MODELS
from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import tokenizer_from
from thinwire.errors import ModelError
from thinwire.models.build import model_from
from thinwire.models.outline import Rows, blocks_of, outline_of

SPECIALS = ["<|endoftext|>", "<pad>", "<mask>", *(f"<extra_id_{i}>" for i in range(30))]
TOKENIZER = tokenizer_from("byte", Text("none", (), ()), SPECIALS)
SPECS = {
    **MODELS,
    "gpt2": "gpt2-nano,n_layer=2,n_head=2,n_embd=16",
    "tied": f"{MODELS['causal']},tie_word_embeddings=true",
}


def third(index: int) -> Rows:
    def rows(count: int) -> tuple[int, int]:
        size = -(-count // 3)
        return min(count, index * size), min(count, (index + 1) * size)

    return rows


def same(spec: str, whole: nn.Module) -> None:
    parts = []
    for index in range(3):
        torch.manual_seed(3)
        values, buffers = outline_of(spec, TOKENIZER, 32).rows(third(index))
        parts.append(values)
    for name, param in whole.named_parameters():
        assert torch.equal(torch.cat([part[name] for part in parts]), param), name
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("name", SPECS)
def test_thirds_make_up_the_whole_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = model_from(SPECS[name], TOKENIZER, 32)
    same(SPECS[name], whole)
    # saved, in one file and in several
    for most in ("1GB", "10KB"):
        whole.save_pretrained(tmp_path / most, max_shard_size=most)
        same(str(tmp_path / most), whole)


def test_a_bare_model_s_weights_have_no_prefix(tmp_path: Path) -> None:
    spec = SPECS["tied"]
    whole = model_from(spec, TOKENIZER, 32)
    whole.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    saved = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in saved.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(str(tmp_path), whole)
    # and one that lacks a weight, or has another shape, is named
    save_file({**bare, "norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"norm\.weight of .* has the shape \[3\]"):
        outline_of(str(tmp_path), TOKENIZER, 32).rows(third(0))
    del bare["norm.weight"]
    save_file(bare, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack model\.norm\.weight"):
        outline_of(str(tmp_path), TOKENIZER, 32).rows(third(0))


@pytest.mark.parametrize(
    ("name", "count"), [("gpt2", 2), ("causal", 1), ("masked", 1), ("spans", 2)]
)
def test_blocks_are_the_layers(name: str, count: int) -> None:
    blocks = list(blocks_of(outline_of(SPECS[name], TOKENIZER, 32).empty()))
    assert len(blocks) == count


def test_a_model_is_empty_at_first() -> None:
    model = outline_of(SPECS["gpt2"], TOKENIZER, 32).empty()
    assert {param.device.type for param in model.parameters()} == {"meta"}


def test_weights_that_are_merged_are_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = MixtralConfig(vocab_size=len(TOKENIZER), num_attention_heads=2, **sizes)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="merges or splits the saved weights of a Mixtral"):
        outline_of(str(tmp_path), TOKENIZER, 32).empty()
