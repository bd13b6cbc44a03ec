"""Models by words: built as the seed says, read back as they were saved, and refused in a line
where they cannot be."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.planted import Planted
from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import tokenizer_from
from thinwire.errors import ModelError
from thinwire.models.build import kind_of, model_from, objective_of, positions_of
from thinwire.models.objective import Batch
from thinwire.models.objectives import objective_from
from thinwire.models.presets import configuration

NANO = ["gpt2-nano", "llama-nano", "bert-nano", "t5-nano"]
SPECIALS = ["<|endoftext|>", "<pad>", "<mask>", *(f"<extra_id_{number}>" for number in range(8))]
TOKENIZER = tokenizer_from("byte", Text("nothing", (), ()), SPECIALS)


def built(spoken: str, seed: int = 0, context: int = 32):
    torch.manual_seed(seed)
    return model_from(spoken, TOKENIZER, context)


def batch_for(spoken: str, context: int = 32) -> Batch:
    objective = objective_from(kind_of(spoken), context).fitted(TOKENIZER)
    draws = torch.Generator().manual_seed(1)
    return objective.batch(torch.randint(256, (3, objective.length), generator=draws), draws)


def logits(model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch.inputs).logits


def refused(spoken: str, context: int = 32, tokenizer=TOKENIZER) -> str:
    with pytest.raises(ModelError) as caught:
        model_from(spoken, tokenizer, context)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small GPT-2."""
    built("gpt2-nano,n_layer=1").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", NANO)
def test_the_seed_decides_the_weights(name: str) -> None:
    one, again, other = (built(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(weight.equal(again[key]) for key, weight in one.items())
    assert any(not weight.equal(other[key]) for key, weight in one.items())


@pytest.mark.parametrize("name", NANO)
def test_a_model_that_was_saved_is_the_same_model(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, batch = built(name), batch_for(name)
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    read = model_from(str(tmp_path), TOKENIZER, 32)
    assert kind_of(str(tmp_path)) == kind_of(name)
    assert type(read) is type(model)
    assert read.training
    assert logits(read, batch).equal(logits(model, batch))
    assert {weight.dtype for weight in read.parameters()} == {torch.float32}
    assert capfd.readouterr() == ("", "")


def test_weights_are_read_as_float32(saved: Path) -> None:
    built("gpt2-nano,n_layer=1").bfloat16().save_pretrained(saved)
    assert {weight.dtype for weight in model_from(str(saved), TOKENIZER, 32).parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("name", NANO)
def test_a_model_reads_with_all_positions_it_may(name: str) -> None:
    model, batch = built(name, context=64), batch_for(name, context=64)
    assert logits(model, batch).shape == (*batch.targets.shape, len(TOKENIZER))
    assert positions_of(model.config) == (None if name == "t5-nano" else 64)


def test_kinds_are_told_by_configurations() -> None:
    from transformers import AutoConfig

    for_model = AutoConfig.for_model
    assert (
        objective_of(for_model("roberta"))
        == objective_of(for_model("distilbert"))
        == objective_of(for_model("modernbert"))
        == "masked"
    )
    assert (
        objective_of(for_model("bert", is_decoder=True))
        == objective_of(for_model("qwen2"))
        == objective_of(for_model("mamba"))
        == "causal"
    )
    assert objective_of(for_model("bart")) == objective_of(for_model("mt5")) == "spans"
    assert positions_of(for_model("roberta", max_position_embeddings=514, pad_token_id=1)) == 512
    with pytest.raises(
        ModelError, match="a model of type 'vit' is no decoder, encoder or encoder-decoder of text"
    ):
        objective_of(for_model("vit"))


def test_an_unknown_name_is_told_the_nearest() -> None:
    assert "no model is called 'gtp2'; did you mean 'gpt2'? There are: gpt2-nano" in refused("gtp2")
    with pytest.raises(ModelError, match="did you mean 'gpt2'"):
        kind_of("gtp2")


def test_a_folder_that_holds_no_model_is_refused(saved: Path) -> None:
    assert f"did you mean '{saved}'?" in refused(str(saved.parent))
    assert "has no config.json, so it holds no model; give the folder" in refused(
        str(saved.parent.parent)
    )
    assert "is not there; give the folder that save_pretrained wrote" in refused("./nowhere")
    assert "is a file; give the folder" in refused(str(saved / "config.json"))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt3"}', "{}"])
def test_a_damaged_configuration_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    line = refused(str(saved))
    assert "cannot be read" in line
    assert "\n" not in line


def test_weights_in_a_pickle_are_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    torch.save(load_file(weights), saved / "pytorch_model.bin")
    weights.unlink()
    assert "model.safetensors" in refused(str(saved))
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "run")))
    assert "model.safetensors" in refused(str(saved))
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:40], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        line = refused(str(saved))
        assert f"the model '{saved}' cannot be read" in line
        assert "\n" not in line
    weights.unlink()
    assert "model.safetensors" in refused(str(saved))


def test_weights_without_a_head_are_refused_and_a_tied_head_needs_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bert, gpt = built("bert-nano,num_hidden_layers=1"), built("gpt2-nano,n_layer=1")
    bert.bert.save_pretrained(tmp_path / "bert")
    gpt.transformer.save_pretrained(tmp_path / "gpt")
    capfd.readouterr()
    line = refused(str(tmp_path / "bert"))
    assert "lack cls.predictions." in line
    assert "which a BertForMaskedLM has; it was saved without its head" in line
    batch = batch_for("gpt2-nano")
    assert logits(model_from(str(tmp_path / "gpt"), TOKENIZER, 32), batch).equal(logits(gpt, batch))
    assert capfd.readouterr() == ("", "")


def test_weights_of_other_sizes_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    for change in ({"n_embd": 48}, {"n_layer": 2}):
        (saved / "config.json").write_text(json.dumps(config | change))
        assert "\n" not in refused(str(saved))


def test_a_tokenizer_that_is_too_large_is_refused(saved: Path) -> None:
    assert refused("gpt2-nano,vocab_size=260") == (
        "the tokenizer has 267 tokens, but gpt2-nano,vocab_size=260 has embeddings for 260; leave "
        "vocab_size out"
    )
    larger = tokenizer_from("byte", Text("nothing", (), ()), [*SPECIALS, "<one_more>"])
    assert "the tokenizer has 268 tokens, but" in refused(str(saved), tokenizer=larger)
    assert (
        "has embeddings for 267; take the model's own tokenizer, or one with fewer tokens"
        in refused(str(saved), tokenizer=larger)
    )
    assert built("gpt2-nano,vocab_size=320").get_input_embeddings().num_embeddings == 320


def test_a_context_beyond_the_positions_is_refused(saved: Path) -> None:
    assert (
        refused(str(saved), context=33)
        == f"rows of 33 tokens were requested, but {saved} has 32 positions; take a shorter context"
    )
    assert "has 16 positions" in refused("gpt2-nano,n_positions=16")
    assert built("gpt2-nano,n_positions=40").config.n_positions == 40


def test_an_encoder_decoder_starts_from_the_padding(tmp_path: Path) -> None:
    config = configuration("t5-nano", vocab=len(TOKENIZER), context=32, eos=256, pad=3)
    config.save_pretrained(tmp_path)
    assert (
        "starts to write from token 3, but is trained to start from the tokenizer's padding, "
        "which is 257"
    ) in refused(str(tmp_path))
    bare = tokenizer_from("byte", Text("nothing", (), ()), ["<|endoftext|>"])
    assert "starts to write from token None" in refused("t5-nano", tokenizer=bare)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    assert "divisible" in refused("gpt2-nano,n_head=5")
    assert "num_key_value_heads=3" in refused("llama-nano,num_key_value_heads=3")


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    begun = time.monotonic()
    line = refused("hf:nobody/no-such-model")
    assert line.startswith(
        "the model 'hf:nobody/no-such-model' is not in this machine's cache, and the hub cannot "
        "be reached; connect, or"
    )
    assert "\n" not in line
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        kind_of("hf:nobody/no-such-model")
    assert time.monotonic() - begun < 10, "its client would try for half a minute"
    assert "hf: names no model" in refused("hf:")
    assert capfd.readouterr() == ("", "")
