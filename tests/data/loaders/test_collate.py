"""Collators: nothing of the text is lost, as much is masked as was asked, and a row's draws are its
own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinwire.data.loaders.collate import IGNORED, encoder_batch, masked_batch, padded, span_batch
from thinwire.errors import DataError

PAD, MASK, EOS = 0, 1, 2
SENTINELS = tuple(range(900, 1000))
SPECIAL = (PAD, MASK, EOS, *SENTINELS)
patient = settings(deadline=None, max_examples=50)
rows = st.lists(st.lists(st.integers(3, 899), min_size=1, max_size=60), min_size=1, max_size=6)

MAKE: dict[str, Callable[..., Any]] = {
    "encoder": lambda **more: encoder_batch(PAD, **more),
    "masked": lambda **more: masked_batch(PAD, MASK, 1000, SPECIAL, **more),
    "spans": lambda **more: span_batch(PAD, EOS, SENTINELS, **more),
}


def arrays(lists: Sequence[Sequence[int]]) -> list[Any]:
    return [np.array(each, dtype=np.int32) for each in lists]


def filled(batch: Any, row: int) -> list[int]:
    """What the model may look at in a row."""
    mask = batch["attention_mask"][row].bool()
    assert (batch["input_ids"][row][~mask] == PAD).all()
    assert mask.tolist() == sorted(mask.tolist(), reverse=True)
    ids: list[int] = batch["input_ids"][row][mask].tolist()
    return ids


@patient
@given(texts=rows, most=st.integers(1, 70), multiple=st.sampled_from([1, 8]))
def test_an_encoder_reads_the_rows(texts: list[list[int]], most: int, multiple: int) -> None:
    batch = encoder_batch(PAD, most, multiple)(arrays(texts), range(len(texts)))
    assert [filled(batch, at) for at in range(len(texts))] == [text[:most] for text in texts]
    assert batch["input_ids"].shape[1] % multiple == 0
    assert batch["input_ids"].shape[1] < max(min(len(text), most) for text in texts) + multiple


@patient
@given(texts=rows, fraction=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_what_is_masked_is_named_and_all_else_is_left(
    texts: list[list[int]], fraction: float, seed: int
) -> None:
    batch = MAKE["masked"](fraction=fraction, seed=seed)(arrays(texts), range(len(texts)))
    for at, text in enumerate(texts):
        shown, labels = filled(batch, at), batch["labels"][at]
        picked = labels != IGNORED
        assert int(picked.sum()) == max(1, round(fraction * len(text)))
        assert not picked[len(text) :].any()
        back = [
            int(label) if label != IGNORED else here
            for here, label in zip(shown, labels.tolist(), strict=False)
        ]
        assert back == text


def test_special_tokens_are_neither_picked_nor_drawn() -> None:
    text = np.array([EOS, 900] + [5] * 2000 + [EOS])
    batch = MAKE["masked"](fraction=0.9, most=5000)([text], [0])
    picked = batch["labels"][0] != IGNORED
    assert not picked[[0, 1, -1]].any()
    shown = batch["input_ids"][0][picked]
    counts = [int((shown == MASK).sum()), int((shown == 5).sum())]
    others = len(shown) - sum(counts)
    assert [count / len(shown) for count in (*counts, others)] == pytest.approx(
        [0.8, 0.1, 0.1], abs=0.03
    )
    assert not np.isin(shown[(shown != MASK)].numpy(), SPECIAL).any()


@patient
@given(texts=rows, fraction=st.floats(0.05, 0.8), span=st.floats(1, 8), seed=st.integers(0, 99))
def test_spans_put_back_are_the_text(
    texts: list[list[int]], fraction: float, span: float, seed: int
) -> None:
    collate = MAKE["spans"](fraction=fraction, mean_span=span, seed=seed, most=60)
    batch = collate(arrays(texts), range(len(texts)))
    for at, text in enumerate(texts):
        shown = filled(batch, at)
        labels = [each for each in batch["labels"][at].tolist() if each != IGNORED]
        assert (shown.pop(), labels.pop()) == (EOS, EOS)
        cut: dict[int, list[int]] = {}
        for each in labels:
            if each in SENTINELS:
                cut[each] = []
            else:
                cut[list(cut)[-1]].append(each)
        assert [
            piece for each in shown for piece in (cut[each] if each in SENTINELS else [each])
        ] == text
        assert list(cut) == list(SENTINELS[: len(cut)])
        if len(text) > 1:
            noise, spans = collate._counts(len(text))
            assert (sum(map(len, cut.values())), len(cut)) == (noise, spans)
            assert all(cut.values())


@pytest.mark.parametrize("name", ["masked", "spans"])
def test_a_rows_draws_do_not_ask_who_reads_it_with_which_others(name: str) -> None:
    texts = arrays([range(100, 140), range(200, 230), range(300, 350)])
    collate = MAKE[name]()
    together = collate(texts, [7, 8, 9])
    alone = collate(texts[1:2], [8])
    for key in alone:
        width = alone[key].shape[1]
        assert together[key][1, :width].equal(alone[key][0])
    assert not collate(texts[1:2], [9])["input_ids"].equal(alone["input_ids"])
    assert not MAKE[name](seed=1)(texts[1:2], [8])["input_ids"].equal(alone["input_ids"])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: MAKE["masked"](fraction=1.0), "is between 0 and 1"),
        (lambda: MAKE["spans"](fraction=0.0), "is between 0 and 1"),
        (lambda: MAKE["spans"](mean_span=0.5), "at least 1 token"),
        (lambda: span_batch(PAD, EOS, SENTINELS[:2]), "has 26 spans, .*2 sentinels"),
        (lambda: masked_batch(PAD, MASK, 3, (0, 1, 2)), "some ids are not special"),
        (lambda: masked_batch(PAD, 9, 5, ()), "from 0 to vocab - 1"),
        (lambda: MAKE["encoder"]()([], []), "a row without tokens"),
        (lambda: MAKE["masked"]()(arrays([[3], []]), [0, 1]), "a row without tokens"),
    ],
    ids=range(8),
)
def test_what_cannot_be_is_refused(make: Callable[[], object], line: str) -> None:
    with pytest.raises(DataError, match=line):
        make()


def test_models_take_the_batches_as_they_are() -> None:
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=1000,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=1000,
            d_model=16,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            d_kv=8,
            decoder_start_token_id=PAD,
        )
    )
    texts = arrays([range(100, 140), range(200, 210)])
    for model, name in ((bert, "masked"), (t5, "spans")):
        assert torch.isfinite(model(**MAKE[name]()(texts, [0, 1])).loss)


def test_padding_takes_no_rows_too() -> None:
    assert padded([], 0).shape == (0, 0)
