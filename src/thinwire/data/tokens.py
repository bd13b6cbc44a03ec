"""A text as numbers on disk, made once for all ranks and jobs of a host and mapped into memory by each.

    <cache>/tokens/<key>/train.bin, held.bin     ids, int32, little-endian
                         tokenizer/              what `save_pretrained` wrote
                         meta.json               counts, and the size and sha256 of every other file

The key is a digest of the text, the tokenizer's settings and this layout's version: another text or tokenizer has another folder,
and none is ever changed in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinwire.data.cache import DamageError, built_once, cache_folder
from thinwire.data.text import Text, read_text
from thinwire.data.tokenizer import encode, tokenizer_from, tokenizer_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
META, TOKENIZER = "meta.json", "tokenizer"
VERIFIED_BYTES = 10**9  # of a file; checksums of larger ones would delay every start by seconds


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as ids, each document followed by the eos token.

    Args:
        train: (tokens,) int32, mapped into memory; a write to it stays in this process.
        held: the same of the held part.
        train_bytes: bytes of text that `train` stands for; the eos tokens stand for none.
        held_bytes: the same of `held`. Bits per byte = nats per token · len(held) / (held_bytes · ln 2).
        digest: sha256 in hexadecimal of the ids of both parts, which ranks and resumed runs must agree on.
    """

    train: Tensor
    held: Tensor
    held_bytes: int
    train_bytes: int
    digest: str


def prepare(
    source: str, spoken_tokenizer: str, specials: Sequence[str], cache: Path | None = None
) -> tuple[PreTrainedTokenizerFast, Tokens]:
    """The tokenizer and the text's ids, from the cache or made into it.

    Any number of processes may call this at once: one builds and the others wait for it.

    Args:
        source: the text, as `read_text` takes it. It is read every time, for only so is it known to be the one in the cache.
        spoken_tokenizer: as `tokenizer_from` takes it.
        specials: the special tokens that are needed, `<|endoftext|>` among them.
        cache: a folder to keep it in, by default `cache_folder()`.

    Raises:
        DataError: the text or tokenizer cannot be had, or the cache cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokenizer, tokens = prepare("bundled", "byte", ["<|endoftext|>"], Path(folder))
        >>> tokenizer.decode(tokens.train[:21]), tokens.train.dtype, len(tokens.held) - tokens.held_bytes
        ('SENSE AND SENSIBILITY', torch.int32, 21)
    """
    specials = tuple(specials)
    key = tokenizer_key(spoken_tokenizer, specials)  # first, because it takes no time to refuse a wrong word
    text = read_text(source)
    asked = json.dumps([FORMAT, text.digest, key, specials])
    folder = (cache or cache_folder()).expanduser() / "tokens" / hashlib.sha256(asked.encode()).hexdigest()[:32]

    def build(at: Path) -> None:
        _build(at, text, tokenizer_from(spoken_tokenizer, text, specials))

    tokens = built_once(folder, build, _open)
    return tokenizer_from(str(folder / TOKENIZER), text, specials), tokens


def _build(folder: Path, text: Text, tokenizer: PreTrainedTokenizerFast) -> None:
    meta: dict[str, Any] = {"format": FORMAT, "text": text.name}
    for name in ("train", "held"):
        documents: tuple[bytes, ...] = getattr(text, name)
        tokens = _write(folder / f"{name}.bin", encode(tokenizer, documents))
        meta[name] = {"tokens": tokens, "bytes": sum(map(len, documents))}
    tokenizer.save_pretrained(folder / TOKENIZER)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    meta["files"] = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    for path in (*files, folder / META):  # or a power cut could leave the new name with empty files
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _write(path: Path, documents: Iterable[NDArray[np.int32]]) -> int:
    with path.open("wb") as file:
        return sum(file.write(ids.astype("<i4").data) for ids in documents) // 4


def _open(folder: Path) -> Tokens:
    """The tokens in a folder that is whole.

    Raises:
        DamageError: a file is missing, or of another size or content than when it was written.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = meta["files"]
        for name, written in files.items():
            _verify(folder / name, int(written["bytes"]), str(written["sha256"]))
        train, held = (_mapped(folder / f"{name}.bin", int(meta[name]["tokens"])) for name in ("train", "held"))
        digest = hashlib.sha256("".join(files[f"{name}.bin"]["sha256"] for name in ("train", "held")).encode()).hexdigest()
        return Tokens(train, held, int(meta["held"]["bytes"]), int(meta["train"]["bytes"]), digest)
    except DamageError:  # which is a ValueError, like all of DataError
        raise
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{META} is not what was written there") from error


def _verify(path: Path, size: int, sha256: str) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise DamageError(f"{path.name} has {found.st_size} bytes, not {size}")
    if size < VERIFIED_BYTES and _sha256(path) != sha256:
        raise DamageError(f"{path.name} has changed")


def _mapped(path: Path, tokens: int) -> Tensor:
    # Not shared: the file is opened to be read only, and a page that is written to is copied first.
    return torch.from_file(str(path), shared=False, size=tokens, dtype=torch.int32)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
