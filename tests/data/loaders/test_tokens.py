"""The laws of prepared tokens: the text's own ids, built once by whoever comes first, whole or not
there at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.conftest import PROSE
from tests.ranks import context
from thinwire.data import Tokens, cache, encode, prepare, read_text, tokenizer_digest
from thinwire.data.cache import LOCK, PARTIAL, DamageError, built_once
from thinwire.data.loaders import tokens
from thinwire.errors import DataError

SPECIALS = ("<|endoftext|>", "<pad>", "<mask>", "<extra_id_0>")
PATIENCE_S = 200  # a fork server starts slowly on a busy machine


def entry(kept: Path) -> Path:
    """The one folder of tokens in a cache; nothing half-built may lie beside it."""
    [folder] = [path for path in (kept / "tokens").iterdir() if not path.name.endswith(LOCK)]
    assert not folder.name.endswith(PARTIAL)
    return folder


@pytest.mark.parametrize("spoken", ["byte", "bpe,vocab=300"])
def test_tokens_are_the_texts_ids_with_eos_after_each_document(
    novel: str, kept: Path, spoken: str
) -> None:
    tokenizer, found = prepare(novel, spoken, SPECIALS, kept)
    text = read_text(novel)
    for ids, documents, size in (
        (found.train, text.train, found.train_bytes),
        (found.held, text.held, found.held_bytes),
    ):
        assert ids.dtype == torch.int32
        assert ids.tolist() == np.concatenate(list(encode(tokenizer, documents))).tolist()
        assert size == sum(map(len, documents))
        ends = (ids == tokenizer.eos_token_id).nonzero().flatten().tolist()
        assert (len(ends), ends[-1]) == (2, len(ids) - 1)
        assert tokenizer.decode(ids[: ends[0]]) == documents[0].decode()


def test_a_second_call_builds_nothing(
    novel: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, built = prepare(novel, "bpe,vocab=300", SPECIALS, kept)
    monkeypatch.setattr(tokens, "_build", None)
    second, found = prepare(novel, "bpe,vocab=300", SPECIALS, kept)
    assert tokenizer_digest(first) == tokenizer_digest(second)
    assert found.digest == built.digest
    assert found.train.equal(built.train)


def test_a_write_to_the_tokens_stays_in_this_process(novel: str, kept: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, mine = prepare(novel, "byte", SPECIALS, kept)
        mine.train.zero_()
        _, others = prepare(novel, "byte", SPECIALS, kept)
    assert not told
    assert others.train.any()


def test_what_differs_has_a_folder_of_its_own(novel: str, kept: Path, tmp_path: Path) -> None:
    def ask(spoken: str = "byte", specials: tuple[str, ...] = SPECIALS) -> Tokens:
        return prepare(novel, spoken, specials, kept)[1]

    tokenizer, first = prepare(novel, "byte", SPECIALS, kept)
    assert ask("bpe,vocab=300").digest != first.digest
    assert (
        ask(specials=SPECIALS[:2]).digest == first.digest
    )  # the ids are the same, the tokenizer is not
    folder = tmp_path / "own"
    for number in range(2):  # the folder of a tokenizer keeps its name while its content changes
        tokenizer.add_special_tokens({"extra_special_tokens": [f"<new_{number}>"]})
        tokenizer.save_pretrained(folder)
        assert len(prepare(novel, str(folder), SPECIALS, kept)[0]) == len(tokenizer)
    (tmp_path / "text" / "a.txt").write_text(PROSE + "c")
    assert ask().digest != first.digest
    assert len([path for path in (kept / "tokens").iterdir() if path.is_dir()]) == 6


def test_a_wrong_tokenizer_or_text_leaves_no_cache(novel: str, kept: Path) -> None:
    for source, spoken in ((novel, "bite"), (novel + "x", "byte")):
        with pytest.raises(DataError, match="did you mean"):
            prepare(source, spoken, SPECIALS, kept)
    with pytest.raises(DataError, match="no eos token"):
        prepare(novel, "byte", ["<pad>"], kept)
    assert not [path for path in (kept / "tokens").iterdir() if path.is_dir()]


@pytest.mark.parametrize("place", ["/proc/thinwire", "/sys/thinwire", "{file}/below"])
def test_a_folder_that_cannot_be_written_is_refused(novel: str, place: str) -> None:
    with pytest.raises(
        DataError, match=r"cannot be used .*: set THINWIRE_CACHE to a folder that you may write"
    ):
        prepare(novel, "byte", SPECIALS, Path(place.format(file=f"{novel}/a.txt")))


def test_what_is_built_serves_where_nothing_can_be_written(
    novel: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(novel, "byte", SPECIALS, kept)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert prepare(novel, "byte", SPECIALS, kept)[1].train_bytes
    with pytest.raises(DataError, match="set THINWIRE_CACHE"):
        prepare(novel, "bpe,vocab=300", SPECIALS, kept)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("train-00000.bin", cut, r"train-00000\.bin has \d+ bytes, not \d+"),
        ("train-00000.bin", flip, r"train-00000\.bin has changed"),
        ("held-00000.bin", flip, r"held-00000\.bin has changed"),
        ("held-00000.bin", os.remove, r"held-00000\.bin is missing"),
        ("tokenizer/tokenizer.json", flip, r"tokenizer\.json has changed"),
        ("meta.json", cut, r"meta\.json is not what was written there"),
        ("meta.json", lambda path: path.write_text("{}"), r"meta\.json is not"),
        ("meta.json", os.remove, r"meta\.json is missing"),
    ],
)
def test_a_damaged_folder_is_built_anew_after_a_warning(
    novel: str, kept: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    _, whole = prepare(novel, "byte", SPECIALS, kept)
    damage(entry(kept) / name)
    with pytest.warns(UserWarning, match=told) as warned:
        _, mended = prepare(novel, "byte", SPECIALS, kept)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert mended.digest == whole.digest
    assert mended.train.equal(
        torch.tensor(np.fromfile(entry(kept) / "train-00000.bin", dtype="<i4"))
    )
    prepare(novel, "byte", SPECIALS, kept)  # without a warning, which would be an error here


def test_large_files_are_checked_by_size_alone(
    novel: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(novel, "byte", SPECIALS, kept)
    flip(entry(kept) / "train-00000.bin")
    monkeypatch.setattr(tokens, "VERIFIED_BYTES", 1)
    prepare(novel, "byte", SPECIALS, kept)
    cut(entry(kept) / "train-00000.bin")
    with pytest.warns(UserWarning, match=r"train-00000\.bin has"):
        prepare(novel, "byte", SPECIALS, kept)


def test_what_is_never_whole_is_an_error_and_no_loop(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise DamageError("never whole")

    with pytest.raises(DataError, match="never whole"):
        built_once(tmp_path / "folder", Path.exists, read)


def run(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns in another process."""
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, work, args), daemon=True)
    process.start()
    there.close()
    assert here.poll(PATIENCE_S)
    result = here.recv()
    process.join()
    return result


def _run(pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(work(*args))
    except Exception as error:
        pipe.send(error)


def build_beside_others(pipe: Any, start: Any, source: str, kept: Path) -> None:
    """Prepare at the same moment as others; tells whether it was this process that built, and what
    it found."""
    built = []
    inner = tokens._build

    def build(*args: Any) -> None:
        built.append(True)
        inner(*args)
        time.sleep(0.2)  # so that the others do come while it is being built

    tokens._build = build
    start.wait(PATIENCE_S)
    _, found = prepare(source, "bpe,vocab=300", SPECIALS, kept)
    pipe.send(
        (bool(built), found.digest, hashlib.sha256(found.train.numpy().tobytes()).hexdigest())
    )


def test_of_three_processes_one_builds_and_all_find_the_same(novel: str, kept: Path) -> None:
    start = context.Barrier(3)
    pipes, children = zip(*(context.Pipe() for _ in range(3)), strict=True)
    started = [
        context.Process(target=build_beside_others, args=(pipe, start, novel, kept), daemon=True)
        for pipe in children
    ]
    for process in started:
        process.start()
    assert all(pipe.poll(PATIENCE_S) for pipe in pipes)
    built, digests, contents = zip(*(pipe.recv() for pipe in pipes), strict=True)
    for process in started:
        process.join()
    assert sum(built) == 1
    assert len(set(digests)) == len(set(contents)) == 1
    assert entry(kept)


def hang_at(place: str, reached: Any, source: str, kept: Path) -> None:
    """Prepare, and stand still for ever at a place on the way."""

    def stand(*_: object, **__: object) -> Any:
        reached.set()
        threading.Event().wait()

    def one_document(*args: Any) -> Iterator[Any]:
        yield from list(encode(*args))[:1]
        stand()

    module, _, name = place.partition(".")
    owner: Any = {"tokens": tokens, "cache": cache}[module]
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step)
    setattr(owner, last, one_document if last == "encode" else stand)
    warnings.simplefilter("ignore")
    prepare(source, "byte", SPECIALS, kept)


@pytest.mark.parametrize(
    ("place", "damaged"),
    [
        ("tokens.encode", False),  # between two documents of train.bin
        ("tokens._sha256", False),  # before meta.json
        ("tokens.os.fsync", False),
        ("cache.os.replace", False),  # with all of it built, but under its other name
        ("cache.os.replace", True),  # before a damaged folder is put away
        ("cache.shutil.rmtree", True),  # after
    ],
)
def test_a_builder_killed_at_any_moment_leaves_nothing_that_is_taken_for_whole(
    novel: str, kept: Path, place: str, damaged: bool
) -> None:
    if damaged:
        prepare(novel, "byte", SPECIALS, kept)
        cut(entry(kept) / "train-00000.bin")
    reached = context.Event()
    builder = context.Process(target=hang_at, args=(place, reached, novel, kept), daemon=True)
    builder.start()
    assert reached.wait(PATIENCE_S)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    left = {path.suffix for path in (kept / "tokens").iterdir()} - {LOCK}
    assert left == ({""} if (place, damaged) == ("cache.os.replace", True) else {PARTIAL})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, found = prepare(novel, "byte", SPECIALS, kept)
    assert len(told) == (left == {""})
    assert found.train_bytes == sum(map(len, read_text(novel).train))
    assert {path.name for path in entry(kept).iterdir()} == {
        "train-00000.bin",
        "held-00000.bin",
        "meta.json",
        "tokenizer",
    }


def test_what_a_killed_builder_of_another_text_left_is_removed_too_but_not_what_is_being_built(
    novel: str, kept: Path
) -> None:
    reached = context.Event()
    builder = context.Process(
        target=hang_at, args=("tokens.os.fsync", reached, novel, kept), daemon=True
    )
    builder.start()
    assert reached.wait(PATIENCE_S)
    [partial] = (kept / "tokens").glob("*" + PARTIAL)
    prepare(novel, "bpe,vocab=300", SPECIALS, kept)
    assert partial.exists()  # its builder lives
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    prepare(novel, "bpe,vocab=301", SPECIALS, kept)
    assert not partial.exists()


def prepare_within(room_bytes: int, source: str, kept: Path) -> None:
    """Prepare where no file can be larger; the kernel then says EFBIG where a full disk says
    ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))
    prepare(source, "byte", SPECIALS, kept)


@pytest.mark.parametrize(
    "room_bytes", [10_000, 1000]
)  # train.bin does not fit; tokenizer.json, which Rust writes, does not
def test_no_room_is_one_line_and_leaves_nothing(
    tmp_path: Path, kept: Path, room_bytes: int
) -> None:
    (tmp_path / "novel.txt").write_text(PROSE if room_bytes == 10_000 else PROSE[:200])
    error = run(prepare_within, room_bytes, str(tmp_path / "novel.txt"), kept)
    assert type(error) is DataError
    assert (
        f"there is no room for the tokens in '{kept}/tokens' (File too large): make some, or "
        "set THINWIRE_CACHE elsewhere"
    ) in str(error)
    assert list((kept / "tokens").iterdir()) == []
    assert prepare(str(tmp_path / "novel.txt"), "byte", SPECIALS, kept)


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"thin")

    with pytest.raises(DataError, match=r"no room .* \(No space left on device\)"):
        built_once(tmp_path / "folder", fill, Path.exists)
    assert list(tmp_path.iterdir()) == []


def test_meta_says_what_the_files_are(novel: str, kept: Path) -> None:
    _, found = prepare(novel, "byte", SPECIALS, kept)
    meta = json.loads((entry(kept) / "meta.json").read_text())
    sha256 = hashlib.sha256(found.train.numpy().tobytes()).hexdigest()
    assert meta["train"] == {
        "tokens": len(found.train),
        "bytes": found.train_bytes,
        "sha256": sha256,
        "shards": ["train-00000.bin"],
    }
    assert (
        found.digest == hashlib.sha256((sha256 + meta["held"]["sha256"]).encode()).hexdigest()
    )  # that older versions gave, too
    files: Iterable[str] = sorted(meta["files"])
    assert files == [
        "held-00000.bin",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "train-00000.bin",
    ]
    assert meta["files"]["train-00000.bin"]["bytes"] == 4 * len(found.train)
