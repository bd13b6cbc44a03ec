"""Presets: every one builds, is as large as it says, and takes Hugging Face's keys or says why
not."""

from __future__ import annotations

import re

import pytest

from thinwire.errors import ModelError
from thinwire.models.presets import OBJECTIVES, PRESETS, configuration, parameters, presets

BYTES = 265  # 256 and what objectives need


def said(spoken: str, vocab: int = BYTES, context: int = 128) -> list[str]:
    """Each line of what is said against a preset's words."""
    with pytest.raises(ModelError) as caught:
        parameters(spoken, vocab=vocab, context=context)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_as_large_as_it_says(name: str) -> None:
    told = presets()[name]
    on_bytes = re.search(r"; ([\d.]+) M parameters on bytes", told)
    assert on_bytes is not None
    assert parameters(name, vocab=BYTES, context=128) == pytest.approx(
        1e6 * float(on_bytes[1]), rel=0.05
    )
    if published := re.search(r", ([\d,]+) M with its own ([\d,]+) tokens$", told):
        own, vocab = (int(number.replace(",", "")) for number in published.groups())
        context = 1024 if "gpt2" in name else 512
        assert parameters(name, vocab=vocab, context=context) == pytest.approx(1e6 * own, rel=0.02)


def test_published_models_have_the_published_sizes() -> None:
    assert parameters("llama-160m", vocab=32_000, context=2048) == 162_417_408
    assert parameters("llama-1b", vocab=128_256, context=8192) == 1_235_814_400
    assert parameters("bert", vocab=30_522, context=512) == 109_514_298
    assert parameters("t5-small", vocab=32_128, context=512) == 60_506_624


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_dropped_and_the_tokenizer_decides_the_ids(name: str) -> None:
    config = configuration(name, vocab=BYTES, context=64, eos=256, pad=257)
    dropout = {
        key: value
        for key, value in config.to_dict().items()
        if "drop" in key and not re.match("summary|classifier", key)
    }
    assert dropout
    assert set(dropout.values()) == {0.0}
    assert (config.vocab_size, config.eos_token_id) == (BYTES, 256)
    assert config.pad_token_id == (None if OBJECTIVES[config.model_type] == "causal" else 257)
    assert getattr(config, "decoder_start_token_id", None) == (
        257 if config.model_type == "t5" else None
    )
    assert getattr(config, "max_position_embeddings", 64) == 64


def test_keys_are_the_familys_own_or_shared_ones() -> None:
    own = configuration(
        "gpt2-nano,n_embd=192,resid_pdrop=0.1,activation_function=gelu_new",
        vocab=BYTES,
        context=128,
    )
    assert (own.n_embd, own.resid_pdrop, own.activation_function) == (192, 0.1, "gelu_new")
    for name in ("gpt2-nano", "llama-nano", "bert-nano", "t5-nano"):
        shared = configuration(
            f"{name}, hidden_size=192, num_hidden_layers=3", vocab=BYTES, context=128
        )
        assert (shared.hidden_size, shared.num_hidden_layers) == (192, 3)
    flags = configuration(
        "llama-nano,tie_word_embeddings=false,num_key_value_heads=none,rms_norm_eps=1e-6",
        vocab=BYTES,
        context=128,
    )
    assert (flags.tie_word_embeddings, flags.num_key_value_heads, flags.rms_norm_eps) == (
        False,
        4,
        1e-6,
    )
    assert parameters(
        "t5-nano,feed_forward_proj=gated-gelu", vocab=BYTES, context=128
    ) > parameters("t5-nano", vocab=BYTES, context=128)


@pytest.mark.parametrize(
    ("spoken", "lines"),
    [
        (
            "gpt3-nano",
            [
                (
                    "no model is called 'gpt3-nano'; did you mean 'gpt2-nano'\\? There are: .*; "
                    "or give a folder .*, or hf:NAME"
                )
            ],
        ),
        (
            "llama-nano,hidden_sizes=8",
            [
                (
                    "llama-nano has no setting 'hidden_sizes'; did you mean 'hidden_size'\\? "
                    "llama-nano has: .*"
                )
            ],
        ),
        (
            "llama-nano,pad_token_id=3",
            ["llama-nano has no setting 'pad_token_id'.*"],
        ),  # the tokenizer's to decide
        (
            "llama-nano,rope_parameters=3",
            ["llama-nano has no setting 'rope_parameters'.*"],
        ),  # a table is no word
        ("gpt2-nano,n_layer", ["gpt2-nano: expected key=value, got 'n_layer'.*"]),
        (
            "gpt2-nano,n_layer=four",
            ["gpt2-nano: setting 'n_layer': expected an integer, got 'four'"],
        ),
        (
            "gpt2-nano,n_inner=1.5",
            ["gpt2-nano: setting 'n_inner': expected an integer or none, got '1.5'"],
        ),
        (
            "gpt2-nano,resid_pdrop=some",
            ["gpt2-nano: setting 'resid_pdrop': expected a number, got 'some'"],
        ),
        (
            "gpt2-nano,scale_attn_weights=1",
            ["gpt2-nano: setting 'scale_attn_weights': expected true or false, got '1'"],
        ),
        ("gpt2-nano,n_layer=2,n_layer=3", ["n_layer is given twice; once is enough"]),
        (
            "gpt2-nano,n_embd=8,hidden_size=8",
            ["hidden_size and n_embd are one setting; give one of them"],
        ),
        (
            "gpt2-nano,n_layer=x,n_embd=0",
            [
                "gpt2-nano: setting 'n_layer': .*",
                "gpt2-nano,n_embd=0: a model has at least 1 of it",
            ],
        ),
        ("gpt2-nano,n_head=5", ["gpt2-nano,n_head=5: .*divisible.*"]),
        (
            "llama-nano,num_attention_heads=5",
            ["llama-nano,num_attention_heads=5: The hidden size \\(96\\) is not a multiple .*"],
        ),
        (
            "llama-nano,num_key_value_heads=3",
            ["llama-nano,num_key_value_heads=3: .*"],
        ),  # builds, and cannot be run
        ("bert-nano,hidden_act=gelux", ["bert-nano,hidden_act=gelux: nothing is called 'gelux'"]),
        (
            "bert-nano,hidden_dropout_prob=2",
            ["bert-nano,hidden_dropout_prob=2: .*between 0 and 1.*"],
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line_each(spoken: str, lines: list[str]) -> None:
    found = said(spoken)
    assert len(found) == len(lines)
    for line, pattern in zip(found, lines, strict=True):
        assert re.fullmatch(pattern, line), line
