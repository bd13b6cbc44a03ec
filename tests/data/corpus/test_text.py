"""The laws of texts: nothing lost, nothing in both parts, and every text that cannot be is refused
in one line that says why."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data import Text, encode, english, read_text, tokenizer_from
from thinwire.data.corpus import text as text_module
from thinwire.data.corpus.clean import cleaners
from thinwire.data.corpus.held import MANY, ONE_IN, held_out, split
from thinwire.data.corpus.text import Documents
from thinwire.errors import DataError

PROSE = "A paragraph that is long enough.\n\n" * 60
words = st.text(st.sampled_from("aé😀 \n"), max_size=300).map(str.encode)


@given(words)
def test_a_split_loses_nothing_and_breaks_no_character(document: bytes) -> None:
    train, held = split(document)
    assert train + held == document
    train.decode()
    held.decode()
    assert len(held) <= len(document) / ONE_IN + 4  # a character has up to 4 bytes


@pytest.mark.parametrize("end", ["\n\n", "\n", "\r\n\r\n"])
def test_a_split_is_at_a_paragraph_or_a_line_where_one_ends_there(end: str) -> None:
    train, held = split(("word " * 7 + end).encode() * 60)
    assert train.endswith(b"\n")
    assert held.startswith(b"word")


@given(st.lists(words, max_size=3 * MANY))
def test_documents_are_in_one_part_or_the_other(documents: list[bytes]) -> None:
    train, held = held_out(documents)
    assert all(train)
    assert all(held)
    assert sum(map(len, train)) + sum(map(len, held)) == sum(map(len, documents))
    if len(documents) > MANY:
        assert held == tuple(filter(None, documents[ONE_IN - 1 :: ONE_IN]))


def test_the_bundled_text_is_english_by_its_works() -> None:
    text = read_text("bundled")
    assert (b"\n".join(text.train), b"\n".join(text.held)) == english()


@given(st.lists(st.binary(max_size=3), max_size=4), st.integers(0, 4))
def test_texts_share_a_digest_only_if_they_are_the_same(documents: list[bytes], at: int) -> None:
    def parts(cut: int) -> Text:
        return Text("any", tuple(documents[:cut]), tuple(documents[cut:]))

    first = parts(0)
    assert (parts(at).digest == first.digest) == (at == 0 or not documents)
    assert Text("other", (), tuple(documents)).digest == first.digest
    assert Text("any", (), (b"".join(documents),)).digest != first.digest or len(documents) == 1
    assert Text("any", (), (*documents, b"")).digest != first.digest


def write(folder: Path) -> None:
    """A folder with text of every kind, and with what is no text."""
    (folder / "deep").mkdir()
    (folder / ".git").mkdir()
    (folder / "b.TXT").write_text(PROSE + "b")
    (folder / "a.md.gz").write_bytes(gzip.compress((PROSE + "a").encode()))
    (folder / "deep" / "c.jsonl").write_text(
        "".join(json.dumps({"text": PROSE + letter}) + "\n" for letter in "cd") + "\n"
    )
    (folder / "e.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"n": 1, "text": PROSE + "é"}).encode())
    )
    (folder / "empty.txt").touch()
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / ".git" / "hidden.txt").write_text("hidden")
    (folder / "dangling.txt").symlink_to("nowhere")


def test_a_folder_is_read_whole_in_the_order_of_paths(tmp_path: Path) -> None:
    write(tmp_path)
    text = read_text(str(tmp_path))
    ends = [held.decode()[-1] for held in text.held]
    assert ends == ["a", "b", "c", "d", "é"]
    assert [train + held for train, held in zip(text.train, text.held, strict=True)] == [
        (PROSE + end).encode() for end in ends
    ]


@pytest.mark.parametrize(
    ("name", "documents"),
    [("a.md.gz", 1), ("b.TXT", 1), ("deep/c.jsonl", 2), ("e.jsonl.gz", 1), ("copy", 1)],
)
def test_a_file_of_any_name_is_read(tmp_path: Path, name: str, documents: int) -> None:
    write(tmp_path)
    (tmp_path / "copy").write_text(PROSE)
    text = read_text(str(tmp_path / name))
    assert len(text.train) == len(text.held) == documents
    assert text.name == str(tmp_path / name)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "novel.txt").write_text(PROSE)
    assert read_text("~/novel.txt").train


FILES: list[tuple[str, bytes | str, str]] = [
    ("empty.txt", "", r"is empty: there is nothing to train on"),
    ("blank.jsonl", '\n{"text": ""}\n', r"is empty"),
    (
        "binary.txt",
        b"text\0text",
        r"binary.txt' is not text: a NUL byte, at offset 4; give text in UTF-8",
    ),
    (
        "latin.txt",
        "na\u00efve".encode("latin-1"),
        r"latin.txt' is not text: byte 0xef, which is not UTF-8 there, at offset 2",
    ),
    ("cut.txt", "é".encode()[:1], r"cut.txt' is not text: byte 0xc3"),
    ("wide.txt", "wide".encode("utf-16"), r"not text"),
    ("binary.txt.gz", gzip.compress(b"text\0"), r"a NUL byte, at offset 4 of what it unpacks to"),
    (
        "plain.txt.gz",
        PROSE,
        r"plain.txt.gz' cannot be unpacked \(Not a gzipped file.*pack it again",
    ),
    ("cut.txt.gz", gzip.compress(PROSE.encode())[:-9], r"cut.txt.gz' cannot be unpacked"),
    (
        "damaged.txt.gz",
        gzip.compress(PROSE.encode())[:20] + bytes(9),
        r"damaged.txt.gz' cannot be unpacked",
    ),
    (
        "other.jsonl",
        '{"text": "a"}\n{"body": "b", "n": 1}\n',
        r"other.jsonl:2 has no text in a field 'text' \(it has: body, n\)",
    ),
    ("list.jsonl", '\n["a"]\n', r"list.jsonl:2 has no text in a field 'text' \(it is a list\)"),
    ("number.jsonl", '{"text": 3}', r"number.jsonl:1 has no text"),
    ("words.jsonl", "words\n", r"words.jsonl:1 is not JSON"),
    ("half.jsonl", r'{"text": "\ud83d"}', r"half.jsonl:1 holds half a character"),
    (
        "letter.txt",
        "a",
        r"is too short to hold some of it out: it has 1 bytes in 1 document; give a few paragraphs",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[name for name, _, _ in FILES])
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        read_text(str(path))
    assert "\n" not in str(caught.value)
    if "is empty" not in message and "too short" not in message:
        with pytest.raises(DataError, match=message):  # and names the file when it is one of many
            read_text(str(tmp_path))


def test_a_missing_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(PROSE)
    with pytest.raises(
        DataError,
        match=rf"there is no such file or folder in '{tmp_path}'; did you mean 'novel.txt'\?",
    ):
        read_text(str(tmp_path / "novell.txt"))
    with pytest.raises(DataError, match=rf"the folder '{tmp_path}/letters' does not exist\."):
        read_text(str(tmp_path / "letters" / "novel.txt"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "names nothing; say bundled"),
        ("bundeld", "did you mean 'bundled'"),
        ("x" * 300, "name too long"),
        ("~nobody-of-that-name/text", "cannot be read"),
        ("a\0b", "there is no such file"),
        ("/dev/null", "neither a file nor a folder"),
        ("hf:", "names no dataset; say hf:NAME"),
        ("hf:name,splt=train", "hf:name has no setting 'splt'; did you mean 'split'\\?"),
        ("hf:name,split", "hf:name: expected key=value, got 'split'"),
        ("hf:name,split=a,split=b", "split is given twice"),
    ],
)
def test_a_word_that_names_no_text_is_refused(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(source)


def test_a_folder_without_text_says_what_counts(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        DataError,
        match=(
            r"holds no text files: \.txt, \.md, \.jsonl, \.parquet count, and these packed as "
            r"\.gz or \.zst"
        ),
    ):
        read_text(str(tmp_path))


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    asked = (
        "from thinwire.data import read_text, tokenizer_from, Text\nfrom thinwire.errors import "
        "DataError\n"
        "for ask in (lambda: read_text('hf:nobody/nothing'), lambda: "
        "tokenizer_from('hf:nobody/nothing', Text('', (), ()), [])):\n"
        "    try:\n        ask()\n    except DataError as error:\n        print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    text, tokenizer = told.stdout.splitlines()
    assert text.startswith("the dataset 'nobody/nothing' cannot be loaded")
    assert "hf: needs the network, unless NAME is a local folder" in text
    assert tokenizer.startswith("the tokenizer 'hf:nobody/nothing' cannot be loaded")
    assert "hf: needs the network" in tokenizer
    assert "Traceback" not in told.stderr


def zst(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


TEXTS = [f"{number}: {PROSE}" for number in range(3)]


def write_parquet(path: Path, **columns: list[object]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("a.jsonl.zst", lambda: zst(lines_of(TEXTS))[:-9], "it ends within a frame.*cut off"),
        ("a.jsonl.zst", lambda: zst(lines_of(TEXTS)) + b"more", "no zstd file, or a damaged one"),
        ("b.jsonl.zst", lambda: b"no zstd at all", "no zstd file, or a damaged one"),
        (
            "a.jsonl.gz",
            lambda: gzip.compress(lines_of(TEXTS))[:-9],
            "no gzip file, or a damaged one",
        ),
        (
            "a.jsonl",
            lambda: lines_of(["a"]) + b'{"text": "\xff"}',
            r"byte 0xff, which is not UTF-8 there, at offset 24",
        ),
        (
            "a.jsonl.zst",
            lambda: zst(lines_of(["a"]) + b"\xff"),
            r"at offset 14 of what it unpacks to",
        ),
        ("a.parquet", lambda: b"no parquet", "cannot be read as parquet"),
        ("empty.parquet", lambda: b"", "cannot be read as parquet"),
        ("empty.jsonl", lambda: b"", "is empty"),
        ("empty.txt.gz", lambda: gzip.compress(b""), "is empty"),
        (
            "a.jsonl",
            lambda: b'{"txt": "a"}',
            "a.jsonl:1 has no text in a field 'text' .it has: txt",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(
    tmp_path: Path, name: str, make, line: str
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(DataError, match=line):
        read_text(str(tmp_path / name))


def test_parquet_without_text_says_what_it_has(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", txet=["a"])
    with pytest.raises(DataError, match="has no column 'text'; did you mean 'txet'"):
        read_text(str(tmp_path / "a.parquet"))
    write_parquet(tmp_path / "b.parquet", text=[1])
    with pytest.raises(DataError, match="holds int, not text"):
        read_text(str(tmp_path / "b.parquet"))


def test_an_empty_shard_among_others_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(lines_of(TEXTS))
    assert len(read_text(str(tmp_path)).train) == 3


def many(folder: Path, count: int) -> str:
    folder.mkdir()
    for part in range(3):
        lines = [
            json.dumps({"text": f"{number}: {PROSE}" if number % 7 else ""}) + "\n"
            for number in range(part, count, 3)
        ]
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.mark.parametrize("count", [20, 300])
@pytest.mark.parametrize("kind", ["files", "hf"])
@pytest.mark.usefixtures("datasets_cache")
def test_a_large_text_is_the_same_text_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, kind: str
) -> None:
    source = ("hf:" if kind == "hf" else "") + many(tmp_path / "text", count)
    small = read_text(source)
    monkeypatch.setattr(text_module, "MEMORY_BYTES", 100)
    large = read_text(source)
    assert isinstance(small.train, tuple)
    assert isinstance(large.train, Documents)
    for _ in range(2):
        assert (tuple(large.train), tuple(large.held)) == (small.train, small.held)
    assert (len(large.train), large.sizes(), large.digest) == (
        len(small.train),
        small.sizes(),
        small.digest,
    )
    assert next(iter(small.held)) in large.held
    assert b"another" not in large.held


def test_a_large_text_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "MEMORY_BYTES", 100)
    text = read_text(many(tmp_path / "text", 300))
    (tmp_path / "text" / "2.jsonl").write_text(json.dumps({"text": PROSE}))
    with pytest.raises(
        DataError, match=r"was changed while it was read; start again once it stays as it is"
    ):
        list(text.train)
    with pytest.raises(DataError, match=r"was changed while it was read"):
        tokenizer_from("bpe,vocab=300", text, [])


def test_a_large_text_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "large.jsonl").open("w") as file:
        for number in range(1500):
            file.write(json.dumps({"text": f"{number} " + "a line of text\n" * 300}) + "\n")
    monkeypatch.setattr(text_module, "MEMORY_BYTES", 1 << 18)
    tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
    tracemalloc.start()
    try:
        text = read_text(str(tmp_path / "large.jsonl"))
        ids = sum(map(len, encode(tokenizer, text.train)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ids == text.sizes()[0] + len(text.train) > 6_000_000
    assert peak < 3_500_000


def test_documents_are_cleaned_before_some_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"{PROSE}{number // 2}  \r\n"}) for number in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    small = read_text(str(tmp_path), clean=lambda: cleaners(["tidied", "unseen"]))
    assert len(set(small.train) | set(small.held)) == len(small.train) + len(small.held) == 150
    assert not any(b"\r" in document for document in small.train)
    monkeypatch.setattr(text_module, "MEMORY_BYTES", 100)
    assert (
        read_text(str(tmp_path), clean=lambda: cleaners(["tidied", "unseen"])).digest
        == small.digest
    )
