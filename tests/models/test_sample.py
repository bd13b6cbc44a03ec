"""Samples: decided by the seed, within the model's positions, and only where there is something to
fill."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import tokenizer_from
from thinwire.errors import ModelError
from thinwire.models.build import model_from
from thinwire.models.sample import PROMPTS, continued, filled, restored, sample

SPECIALS = ["<|endoftext|>", "<pad>", "<mask>", *(f"<extra_id_{number}>" for number in range(8))]
TOKENIZER = tokenizer_from("byte", Text("nothing", (), ()), SPECIALS)


def built(spoken: str, context: int = 32):
    torch.manual_seed(0)
    return model_from(spoken, TOKENIZER, context)


def always(token: int, context: int = 32):
    """A small GPT-2 that finds one token the likeliest, whatever it reads."""
    model = built("gpt2-nano,n_layer=1,vocab_size=300", context)  # of 300 rows 267 are tokens
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[token] = 1.0
        model.transformer.wte.weight[290] = 2.0  # likelier still, but no token
    return model


@pytest.mark.parametrize(
    "name", ["gpt2-nano,resid_pdrop=0.5", "llama-nano", "bert-nano", "t5-nano"]
)
def test_a_seed_decides_and_nothing_else_changes(name: str) -> None:
    model = built(name)
    state = torch.random.get_rng_state()
    one, again = (sample(model, TOKENIZER, None, 20, temperature=1.0, seed=3) for _ in range(2))
    others = {
        sample(model, TOKENIZER, None, 20, temperature=1.0, seed=seed) for seed in range(4, 8)
    }
    assert one == again
    assert len(others | {one}) > 1 or name == "t5-nano", "an untrained one seldom writes a sentinel"
    assert model.training
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize("temperature", [0, 0.01])
def test_what_goes_on_has_its_length_however_short_the_context(temperature: float) -> None:
    for context in (1, 7, 32):
        model = always(ord("A"), context)
        for length in (0, 1, 29, 30):
            assert continued(model, TOKENIZER, "The ", length, temperature) == "The " + "A" * length


def test_tokens_are_read_within_the_context_and_half_of_it_at_least() -> None:
    model = always(ord("A"), context=8)
    last: list[int] = []
    model.transformer.wpe.register_forward_pre_hook(
        lambda _, positions: last.append(int(positions[0].max()))
    )
    assert continued(model, TOKENIZER, "To be or not", 20) == "To be or not" + "A" * 20
    assert last == [3, 4, 5, 6, 7] * 4, (
        "a token is one pass over one token, and every fifth one over four"
    )


def test_a_document_ends_where_the_model_ends_it() -> None:
    model = always(TOKENIZER.eos_token_id)
    model.generation_config.eos_token_id = 5  # a folder's own opinion
    assert continued(model, TOKENIZER, "The end", 30) == "The end"


def test_the_surest_gap_is_filled_first_and_read_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = TOKENIZER.mask_token_id
    model = built("bert-nano,num_hidden_layers=1")

    def alphabet(input_ids: torch.Tensor) -> SimpleNamespace:
        """Sure of the letter after a letter, unsure after a mask; surest of all that a special
        token is best."""
        logits = torch.zeros(*input_ids.shape, len(TOKENIZER))
        for place in range(1, input_ids.shape[1]):
            before = int(input_ids[0, place - 1])
            logits[0, place, ord("?") if before == mask else before + 1] = (
                1.0 if before == mask else 9.0
            )
        logits[..., 256:] = 20.0
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(model, "forward", alphabet)
    assert filled(model, TOKENIZER, "abc<mask><mask><mask>ghij<mask>l") == "abcdefghijkl"
    assert filled(model, TOKENIZER, "abc<mask>", temperature=0.1) == "abcd"


def test_spans_are_put_where_their_sentinels_were(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = TOKENIZER.convert_tokens_to_ids(
        ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    )
    model = built("t5-nano")
    written = [
        257,
        *b"lost",
        first,
        *b"quick brown",
        second,
        *b"over",
        first,
        *b"again",
        third,
        *b"nowhere",
        256,
    ]
    monkeypatch.setattr(model, "generate", lambda *_, **__: torch.tensor([written]))
    assert (
        restored(model, TOKENIZER, "The <extra_id_0> fox jumps <extra_id_1> the dog")
        == "The quick brown fox jumps over the dog"
    )
    assert restored(model, TOKENIZER, "<extra_id_3>fox", new_tokens=5) == "fox"


@pytest.mark.parametrize("name", ["gpt2-nano", "bert-nano", "t5-nano"])
@pytest.mark.parametrize("context", [3, 8])
def test_the_usual_prompt_suits_any_context(name: str, context: int) -> None:
    assert isinstance(sample(built(name, context), TOKENIZER, new_tokens=5), str)
    assert set(PROMPTS) == {"causal", "masked", "spans"}


@pytest.mark.parametrize(
    ("name", "prompt", "more", "line"),
    [
        (
            "gpt2-nano",
            "",
            {},
            "the prompt is empty, and nothing can follow it; give at least a letter",
        ),
        ("bert-nano", "", {}, "the prompt is empty"),
        (
            "bert-nano",
            "no gap",
            {},
            (
                "the prompt 'no gap' has no <mask>, and this model fills gaps; write <mask> for "
                "each token that is missing"
            ),
        ),
        (
            "bert-nano",
            "a" * 32 + "<mask>",
            {},
            "the prompt has 33 tokens, and the model reads 32 at once; cut it",
        ),
        (
            "t5-nano",
            "no gap",
            {},
            (
                "the prompt 'no gap' has no <extra_id_0>, and this model fills gaps; write "
                "<extra_id_0>, <extra_id_1>, …"
            ),
        ),
        (
            "gpt2-nano",
            "a",
            {"new_tokens": -1},
            "new_tokens=-1, temperature=0.8: neither can be negative",
        ),
        (
            "t5-nano",
            "a<extra_id_0>",
            {"temperature": -1.0},
            "temperature=-1: neither can be negative or endless; take 0 or more",
        ),
        (
            "bert-nano",
            "a<mask>",
            {"temperature": float("inf")},
            "temperature=inf: neither can be negative or endless",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    name: str, prompt: str, more: dict[str, float], line: str
) -> None:
    with pytest.raises(ModelError) as caught:
        sample(built(name), TOKENIZER, prompt, **more)  # type: ignore[arg-type]
    assert line in str(caught.value)
