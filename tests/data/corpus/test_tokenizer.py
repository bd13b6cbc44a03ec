"""The laws of tokenizers: text comes back as it was, also after saving; and documents get the ids
that the tokenizer would give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.data.corpus.conftest import ENGLISH, KINDS, SPECIALS, TEXT
from thinwire.data import Text, encode, tokenizer_digest, tokenizer_from
from thinwire.data.corpus import tokenizer as module
from thinwire.data.corpus.tokenizer import tokenizer_key
from thinwire.errors import DataError

# Words and white space of every kind, and the letters of special tokens; and any characters at all.
words = st.lists(
    st.sampled_from(
        [
            *"\n\n\n  \t\r\0\x1c\u3000\u00a0\u2028",
            "the",
            "The end.",
            "'s",
            "12",
            "é😀",
            "<pad>",
            "<mask>",
            "\u200b",
        ]
    )
)
texts = st.one_of(st.text(), words.map("".join))


@pytest.fixture(scope="module")
def saved(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("saved") for kind in KINDS}
    for kind, folder in folders.items():
        tokenizers[kind].save_pretrained(folder)
    return folders


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_text_comes_back_as_it_was(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, text: str
) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text  # special tokens in it included
    [ids] = encode(tokenizer, [text.encode()])
    assert ids.dtype == np.int32
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("kind", KINDS)
@given(documents=st.lists(texts, max_size=4))
def test_documents_get_the_tokenizers_own_ids(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, documents: list[str]
) -> None:
    tokenizer = tokenizers[kind]
    own = [
        [
            *tokenizer.encode(text, split_special_tokens=True, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        for text in documents
    ]
    assert [ids.tolist() for ids in encode(tokenizer, (text.encode() for text in documents))] == own


@given(text=texts)
def test_a_byte_is_its_own_id(tokenizers: dict[str, PreTrainedTokenizerFast], text: str) -> None:
    assert tokenizers["byte"].encode(text, split_special_tokens=True) == list(text.encode())


def test_numpy_and_the_byte_tokenizer_agree_on_every_byte(
    tokenizers: dict[str, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 0x333)])).encode()
    fast = np.concatenate(list(encode(tokenizers["byte"], [every, b"", ENGLISH])))
    monkeypatch.setattr(module, "_is_byte", lambda _: False)
    slow = np.concatenate(list(encode(tokenizers["byte"], [every, b"", ENGLISH])))
    assert np.array_equal(fast, slow)
    assert set(fast.tolist()) == set(range(257)) - {
        0xC0,
        0xC1,
        *range(0xF5, 0x100),
    }  # bytes that UTF-8 never has


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_a_saved_tokenizer_gives_the_same_ids(
    tokenizers: dict[str, PreTrainedTokenizerFast], saved: dict[str, Path], kind: str, text: str
) -> None:
    loaded = LOADED.setdefault(kind, tokenizer_from(str(saved[kind]), TEXT, SPECIALS))
    assert loaded.encode(text) == tokenizers[kind].encode(text)
    assert loaded.decode(loaded.encode(text)) == text


LOADED: dict[str, PreTrainedTokenizerFast] = {}


def test_batches_keep_documents_apart(
    tokenizers: dict[str, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [ENGLISH[at : at + at % 997] for at in range(0, 30_000, 501)]
    whole = [ids.tolist() for ids in encode(tokenizers["bpe,vocab=400"], documents)]
    monkeypatch.setattr(module, "PIECE", 50)  # batches of 1600 letters
    assert [ids.tolist() for ids in encode(tokenizers["bpe,vocab=400"], documents)] == whole
    assert len(whole) == len(documents)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_follow_and_have_their_roles(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    first = len(tokenizer) - len(SPECIALS)
    assert first == (256 if kind == "byte" else 400 - len(SPECIALS))
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == list(range(first, len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.mask_token) == tuple(SPECIALS[:3])
    assert tokenizer.extra_special_tokens == SPECIALS[3:]
    assert tokenizer.decode([first + 3, 65], skip_special_tokens=True) == tokenizer.decode([65])
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_training_is_the_same_every_time(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    again = tokenizer_from("bpe,vocab=400", TEXT, SPECIALS)
    assert tokenizer_digest(again) == tokenizer_digest(tokenizers["bpe,vocab=400"])


def test_a_short_text_gives_a_small_vocabulary() -> None:
    tokenizer = tokenizer_from(
        "bpe,vocab=4096", Text("short", (b"the end, the end",), ()), SPECIALS
    )
    assert 256 + len(SPECIALS) < len(tokenizer) < 300


def test_a_digest_is_of_the_tokenizer_and_not_of_its_last_call(
    tokenizers: dict[str, PreTrainedTokenizerFast], saved: dict[str, Path]
) -> None:
    digests = {kind: tokenizer_digest(tokenizer) for kind, tokenizer in tokenizers.items()}
    assert len(set(digests.values())) == 2
    for kind, tokenizer in tokenizers.items():
        loaded = tokenizer_from(str(saved[kind]), TEXT, SPECIALS)
        assert (
            tokenizer_digest(loaded) == tokenizer_key(str(saved[kind]), SPECIALS) == digests[kind]
        )
        loaded(["a long text", "b"], truncation=True, max_length=4, padding=True)
        assert tokenizer_digest(loaded) == digests[kind]
        [ids] = encode(loaded, [b"a long text"])  # which the settings of that call do not cut
        assert tokenizer.decode(ids[:-1]) == "a long text"
    assert tokenizer_digest(tokenizer_from("byte", TEXT, SPECIALS[:2])) != digests["byte"]


def test_a_loaded_tokenizer_needs_roles_by_any_name_and_the_others_by_name(tmp_path: Path) -> None:
    other = tokenizer_from("byte", TEXT, ["</s>", "<extra_id_0>"])
    other.eos_token = "</s>"
    other.save_pretrained(tmp_path)
    loaded = tokenizer_from(str(tmp_path), TEXT, ["<|endoftext|>", "<extra_id_0>"])
    assert [ids.tolist() for ids in encode(loaded, [b"a"])] == [[97, 256]]
    assert len(loaded) == len(other)
    with pytest.raises(
        DataError,
        match=(
            r"lacks special tokens .*: pad \(such as <pad>\), mask \(such as <mask>\), "
            r"<extra_id_1>.*; take byte"
        ),
    ):
        tokenizer_from(
            str(tmp_path), TEXT, [*SPECIALS, *(f"<extra_id_{number}>" for number in range(3, 100))]
        )
    with pytest.raises(DataError, match="and 95 more"):
        tokenizer_from(
            str(tmp_path), TEXT, ["<pad>", *(f"<extra_id_{number}>" for number in range(100))]
        )


def test_without_an_eos_token_nothing_is_encoded() -> None:
    with pytest.raises(DataError, match="has no eos token"):
        encode(tokenizer_from("byte", TEXT, []), [b"a"])


def test_what_is_like_bytes_but_is_not_takes_the_long_way(
    tmp_path: Path, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> None:
    tokenizers["byte"].save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert [ids.tolist() for ids in encode(loaded, [b"A"])] == [[97, 256]]


@pytest.mark.parametrize(
    ("spoken", "message"),
    [
        (
            "bytes",
            (
                r"there is no tokenizer 'bytes'; did you mean 'byte'\? Say byte, bpe,vocab=4096, "
                r"a folder or hf:NAME"
            ),
        ),
        ("", "there is no tokenizer ''"),
        ("bpe", "needs the size of its vocabulary: say bpe,vocab=4096"),
        ("bpe,vocab=many", "vocab=many is no whole number"),
        (
            "bpe,vocab=262",
            "256 bytes, 6 special tokens and a pair take vocab=263 at least; or take byte",
        ),
        ("bpe,size=300", r"bpe has no setting 'size'\. bpe has: vocab"),
        ("byte,vocab=300", r"byte has no setting 'vocab'\. byte has: no settings"),
        ("hf:", "names no repository; say hf:NAME"),
        ("x" * 300, "cannot be read"),
        (__file__, "is a file; give the folder that save_pretrained wrote"),
    ],
)
def test_what_names_no_tokenizer_is_refused(spoken: str, message: str) -> None:
    for ask in (
        lambda: tokenizer_from(spoken, TEXT, SPECIALS),
        lambda: tokenizer_key(spoken, SPECIALS),
    ):
        with pytest.raises(DataError, match=message):
            ask()


@pytest.mark.parametrize("specials", [["<pad>", "<pad>"], [""], ["a"]])
def test_special_tokens_that_cannot_be_told_apart_are_refused(specials: list[str]) -> None:
    with pytest.raises(DataError, match="do not all differ"):
        tokenizer_from("byte", TEXT, specials)


def test_a_special_token_that_is_a_word_is_refused() -> None:
    with pytest.raises(DataError, match="are words of the text"):
        tokenizer_from("bpe,vocab=400", TEXT, ["<pad>", "th"])


def test_a_missing_folder_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(DataError, match=r"did you mean 'tokenizer'\?"):
        tokenizer_from(str(tmp_path / "tokeniser"), TEXT, [])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "config.json": '{"model_type": "gpt2"}'
        },  # of which transformers makes up an empty tokenizer
        {"tokenizer.json": "{", "tokenizer_config.json": "{}"},
        {"tokenizer_config.json": "{}"},
    ],
)
def test_a_folder_without_a_tokenizer_is_refused_in_a_line(
    tmp_path: Path, files: dict[str, str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(
        DataError, match=r"holds no tokenizer, or a damaged one|no tokenizer\.json lies there"
    ) as caught:
        tokenizer_from(str(tmp_path), TEXT, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["tokenizers", "transformers"])
def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"pip install 'thinwire\[train\]'"):
        tokenizer_from("byte", TEXT, [])
