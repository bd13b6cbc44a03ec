"""The laws of objectives: exact counts, nothing lost, everything from the generator; and the small
models learn by each of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.data.corpus.text import Text
from thinwire.data.corpus.tokenizer import tokenizer_from
from thinwire.errors import ModelError
from thinwire.models.build import kind_of, model_from
from thinwire.models.objective import IGNORED, Batch, Objective, Tokens, loss
from thinwire.models.objectives import _parted, _text, causal, masked, objective_from, spans

NOTHING = Text("nothing", (), ())
SEEDS = st.integers(0, 2**63 - 1)


def fitted(objective: Any) -> Any:
    return objective.fitted(tokenizer_from("byte", NOTHING, objective.specials))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(objective: Objective, rows: int, seed: int = 0, eos: float = 0.0) -> Tensor:
    """Rows of random bytes, a fraction of them the end of a document."""
    draws = generator(seed)
    text = torch.randint(256, (rows, objective.length), generator=draws)
    return text.masked_fill_(torch.rand(text.shape, generator=draws) < eos, 256)


def same(one: Batch, two: Batch) -> bool:
    return one.targets.equal(two.targets) and all(
        tensor.equal(two.inputs[name]) for name, tensor in one.inputs.items()
    )


@given(context=st.integers(1, 60), rows=st.integers(1, 4), seed=SEEDS)
def test_causal_targets_follow_their_inputs(context: int, rows: int, seed: int) -> None:
    objective = fitted(causal(context))
    text = windows(objective, rows, seed, eos=0.1)
    batch = objective.batch(text, generator(0))
    assert batch.inputs["input_ids"].equal(text[:, :context])
    assert batch.targets.equal(text[:, 1:])
    assert (objective.length, objective.length_read) == (context + 1, context)


@given(
    context=st.integers(1, 80), fraction=st.floats(0.01, 0.6), rows=st.integers(1, 5), seed=SEEDS
)
def test_masked_rows_have_the_same_number_of_targets_and_touch_nothing_else(
    context: int, fraction: float, rows: int, seed: int
) -> None:
    objective = fitted(masked(context, fraction))
    text = windows(objective, rows, seed, eos=0.1)
    batch = objective.batch(text, generator(seed))
    picked = batch.targets != IGNORED
    enough = (text != 256).sum(1) >= objective.picks
    assert objective.picks == max(1, round(fraction * context))
    assert (picked.sum(1) == objective.picks)[enough].all()
    assert (picked.sum(1) <= objective.picks).all()
    assert batch.targets[picked].equal(text[picked])
    assert batch.inputs["input_ids"][~picked].equal(text[~picked])
    assert not picked[text == 256].any(), "the end of a document is no word to guess"
    shown = batch.inputs["input_ids"][picked]
    assert ((shown < 256) | (shown == 258)).all(), "bytes and the mask"


def test_of_the_picked_80_percent_are_masked_and_10_percent_are_others() -> None:
    objective = fitted(masked(128))
    text = windows(objective, 1000, eos=0.02)
    batch = objective.batch(text, generator(1))
    picked = batch.targets != IGNORED
    total = int(picked.sum())
    assert total == 1000 * 19
    shown, was = batch.inputs["input_ids"][picked], text[picked]
    counts = {"mask": int((shown == 258).sum()), "own": int((shown == was).sum())}
    counts["other"] = total - sum(counts.values())
    for name, fraction in {"mask": 0.8, "own": 0.1 + 0.1 / 256, "other": 0.1 * 255 / 256}.items():
        assert abs(counts[name] - fraction * total) < 4 * math.sqrt(
            fraction * (1 - fraction) * total
        ), name
    others = torch.bincount(shown[(shown != 258) & (shown != was)], minlength=257)
    assert int(others[256]) == 0
    assert int((others[:256] == 0).sum()) < 5, "any byte may take its place"
    places = picked.sum(0).float()
    assert float(places.std()) < 2 * math.sqrt(1000 * 0.15 * 0.85), "no place is preferred"


def test_random_words_are_those_between_the_special_ids() -> None:
    tokens = Tokens(vocab=10, special=(0, 3, 4, 9), eos=0)
    drawn = Counter(_text(torch.Size([6000]), tokens, generator(0)).tolist())
    assert set(drawn) == {1, 2, 5, 6, 7, 8}
    assert min(drawn.values()) > 850


def put_back(inputs: list[int], targets: list[int], sentinels: tuple[int, ...]) -> list[int]:
    """The inputs with every sentinel replaced by the span that follows it in the targets."""
    written: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in sentinels:
            span = written.setdefault(token, [])
        else:
            span.append(token)
    return [
        each
        for token in inputs[:-1]
        for each in (written[token] if token in sentinels else [token])
    ]


@given(
    context=st.integers(3, 120),
    fraction=st.floats(0.01, 0.9),
    mean_span=st.floats(1, 12),
    rows=st.integers(1, 4),
    seed=SEEDS,
)
def test_spans_put_back_are_the_text(
    context: int, fraction: float, mean_span: float, rows: int, seed: int
) -> None:
    objective = fitted(spans(context, fraction, mean_span))
    assert objective.tokens is not None
    text = windows(objective, rows, seed, eos=0.1)
    batch = objective.batch(text, generator(seed))
    inputs, written = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
    noise, count = objective.counts
    assert inputs.shape == (rows, objective.length - noise + count + 1)
    assert batch.targets.shape == written.shape == (rows, noise + count + 1)
    assert inputs.shape[1] <= context
    assert written[:, 1:].equal(batch.targets[:, :-1])
    assert (written[:, 0] == objective.tokens.pad).all()
    sentinels = objective.tokens.sentinels
    for row, target, whole in zip(
        inputs.tolist(), batch.targets.tolist(), text.tolist(), strict=True
    ):
        assert put_back(row, target, sentinels) == whole
        assert row[-1] == target[-1] == objective.tokens.eos
        assert (
            [token for token in row if token in sentinels]
            == [token for token in target if token in sentinels]
            == list(sentinels)
        )


@pytest.mark.parametrize("context", [3, 4, 16, 64, 128, 200, 512, 1024])
def test_the_encoder_reads_the_whole_context(context: int) -> None:
    objective = fitted(spans(context))
    inputs = objective.batch(windows(objective, 1), generator(0)).inputs["input_ids"]
    assert inputs.shape == (1, context)
    if context >= 64:
        assert objective.counts[0] / objective.length == pytest.approx(0.15, abs=0.01)


def test_the_published_lengths() -> None:
    assert spans(512).length == 568  # T5's own: 512 inputs and 114 targets come of 568 tokens
    assert sum(spans(512).counts) + 1 == 114


def test_every_way_to_part_a_row_is_as_likely() -> None:
    drawn = Counter(map(tuple, _parted(6000, 5, 3, generator(0)).tolist()))
    assert len(drawn) == 6
    assert all(sum(parts) == 5 and min(parts) >= 1 for parts in drawn)
    assert min(drawn.values()) > 850
    assert _parted(2, 4, 1, generator(0)).tolist() == [[4], [4]]
    assert _parted(2, 4, 4, generator(0)).tolist() == [[1, 1, 1, 1]] * 2


@pytest.mark.parametrize("name", ["causal", "masked", "spans"])
def test_a_generator_decides_a_batch_and_rows_keep_their_order(name: str) -> None:
    objective = fitted(objective_from(name, 32))
    text = windows(objective, 6)
    one, again, other = (objective.batch(text, generator(seed)) for seed in (1, 1, 2))
    assert same(one, again)
    assert same(one, other) == (name == "causal")
    before = torch.random.get_rng_state()
    objective.batch(text, generator(3))
    assert torch.random.get_rng_state().equal(before), "nothing is drawn from elsewhere"
    assert one.to("cpu").targets.equal(one.targets)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: causal(0),
            "causal(context=0): a row has at least 1 token; take context=1 or more",
        ),
        (
            lambda: masked(8, fraction=1.0),
            "the fraction of masked positions is between 0 and 1; take 0.15",
        ),
        (
            lambda: spans(2),
            "a token, a sentinel and the end are 3 tokens; take context=3 or more",
        ),
        (
            lambda: spans(8, fraction=0.95),
            "the fraction that is cut out is between 0 and 0.9; take 0.15",
        ),
        (lambda: spans(8, mean_span=0.5), "a span has at least 1 token; take mean_span=3"),
        (
            lambda: objective_from("causl", 8),
            (
                "no objective is called 'causl'; did you mean 'causal'? There are: causal, "
                "masked, spans"
            ),
        ),
        (
            lambda: objective_from("causal", 8, "masked"),
            "the objective causal is for decoders (gpt2-…, llama-…), but this model is one of",
        ),
        (
            lambda: causal(8).batch(torch.zeros(1, 9), generator(0)),
            "causal(context=8) knows no ids yet; call fitted(tokenizer)",
        ),
        (
            lambda: fitted(causal(8)).batch(torch.zeros(1, 8), generator(0)),
            "reads rows of 9 tokens, not a tensor of shape (1, 8)",
        ),
        (
            lambda: spans(64).fitted(tokenizer_from("byte", NOTHING, ["<|endoftext|>"])),
            (
                "spans needs special tokens that the tokenizer lacks: <pad>, <extra_id_0>, "
                "<extra_id_1> and 1 more; add them"
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused(make, line: str) -> None:
    with pytest.raises(ModelError) as caught:
        make()
    assert line in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-nano", "t5-nano"])
def test_a_small_model_learns(name: str) -> None:
    objective = objective_from(kind_of(name), 48)
    tokenizer = tokenizer_from("byte", NOTHING, objective.specials)
    objective = objective.fitted(tokenizer)
    torch.manual_seed(0)
    model = model_from(name, tokenizer, 48)
    text = torch.tensor(
        list(
            b"The quality of mercy is not strain'd, it droppeth as the gentle rain from heaven "
            * 20
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    draws, losses = generator(0), []
    for _ in range(30):
        at = torch.randint(len(text) - objective.length, (8,), generator=draws)
        rows = torch.stack([text[start : start + objective.length] for start in at.tolist()])
        value = loss(model, objective.batch(rows, draws))
        value.backward()
        assert all(weight.grad is not None for weight in model.parameters()), (
            "the wire waits for every gradient"
        )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=1.2)
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5
