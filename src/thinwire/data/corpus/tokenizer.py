"""Make or load a tokenizer, and encode documents as ids; decoding gives the text back exactly.

    byte                  256 bytes, each its own number; nothing to train
    bpe,vocab=4096        pairs of bytes merged where this text repeats them
    path/to/a/folder      what `save_pretrained` wrote
    hf:openai-community/gpt2

Both that are built here work on bytes, so any text comes back as it was. The special tokens follow
after the last id of the text's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from thinwire.data._specs import absent, extra, path_from, settings
from thinwire.data.corpus.pieces import PIECE, cut_text
from thinwire.data.corpus.text import Text
from thinwire.errors import DataError
from thinwire.text.words import error_text, near

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BYTES = 256
BATCH = (
    32  # pieces encoded at once: an encoding takes a hundred bytes a token until its ids are copied
)
ROLES = {
    "<|endoftext|>": "eos",
    "<pad>": "pad",
    "<mask>": "mask",
}  # any other special token is an extra one


def tokenizer_from(spec: str, text: Text, specials: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer that `spec` names, with the special tokens that the caller needs.

    Args:
        spec: `byte`, `bpe,vocab=N`, the folder of a saved tokenizer, or `hf:NAME`.
        text: what `bpe` is trained on; the others do not look at it.
        specials: `<|endoftext|>`, `<pad>` and `<mask>` become the tokens of the roles eos, pad and
            mask, all others extra tokens. A tokenizer that is loaded must have them: a role under
            any name, the extra ones by name.

    Raises:
        DataError: there is no such tokenizer, a setting that cannot be, or a loaded tokenizer that
            lacks special tokens.

    Example:
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>", "<mask>"])
        >>> tokenizer.encode("tea for 2 <mask>")
        [116, 101, 97, 32, 102, 111, 114, 32, 50, 32, 257]
        >>> tokenizer.eos_token_id, tokenizer.mask_token_id, len(tokenizer)
        (256, 257, 258)
    """
    kind, value = _parse(spec, specials)
    if kind == "byte":
        return _dressed(
            _byte_level({letter: byte for byte, letter in enumerate(_letters())}, regex=False),
            specials,
        )
    if kind == "bpe":
        return _dressed(_trained(int(value), text, len(specials)), specials)
    return _loaded(spec, value, kind == "folder", specials)


def tokenizer_key(spec: str, specials: Sequence[str]) -> str:
    """Return what the tokenizer depends on besides the text: its settings if it is built here, its
    digest if it is loaded.

    Raises:
        DataError: as `tokenizer_from`.

    Example:
        >>> tokenizer_key("bpe, vocab=0512", [])
        'bpe,vocab=512'
    """
    kind, value = _parse(spec, specials)
    if kind in ("byte", "bpe"):
        return f"{kind},vocab={value}"
    return tokenizer_digest(_loaded(spec, value, kind == "folder", specials))


def encode(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[bytes]
) -> Iterator[NDArray[np.int32]]:
    """Yield the ids of each document, with the end-of-text token after them.

    What looks like a special token in a document is text like any other: a corpus cannot end
    itself.

    Args:
        tokenizer: any with an eos token.
        documents: UTF-8.

    Returns:
        arrays (tokens,) int32, one to a document.

    Raises:
        DataError: the tokenizer has no eos token.

    Example:
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        >>> [ids.tolist() for ids in encode(tokenizer, [b"tea", b"2"])]
        [[116, 101, 97, 256], [50, 256]]
    """
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError(
            "this tokenizer has no eos token, so documents would run into one another; give it "
            "<|endoftext|>"
        )
    return _byte_ids(eos, documents) if _is_byte(tokenizer) else _ids(tokenizer, eos, documents)


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 in hexadecimal of all that decides which ids a text gets, and which tokens
    are special.

    Example:
        >>> text = Text("none", (), ())
        >>> small, large = (tokenizer_from("byte", text, special) for special in ([], ["<pad>"]))
        >>> tokenizer_digest(small) == tokenizer_digest(large)
        False
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are the settings of the last call, not of the tokenizer.
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES.values()}
    return hashlib.sha256(json.dumps([state, roles], sort_keys=True).encode()).hexdigest()


def _parse(spec: str, specials: Sequence[str]) -> tuple[str, str]:
    """Return `byte`, `bpe`, `folder` or `hf`, and its value: the vocabulary size, the path or the
    name."""
    if len({special for special in specials if len(special) > 1}) < len(specials):
        raise DataError(
            f"the special tokens {list(specials)} do not all differ, or are too short to differ "
            "from letters"
        )
    # Kinds by their first word; a path is whatever no kind claims.
    if spec.startswith("hf:"):
        name, _ = settings(spec, [])
        if name == "hf:":
            raise DataError(
                "the tokenizer 'hf:' names no repository; say hf:NAME, such as "
                "hf:openai-community/gpt2"
            )
        return "hf", name.removeprefix("hf:")
    word = spec.partition(",")[0].strip()
    if word == "byte":
        settings(spec, [])
        return "byte", str(BYTES + len(specials))
    if word == "bpe":
        return "bpe", str(_vocabulary(spec, len(specials)))
    path = path_from(spec, "tokenizer")
    if path.is_dir() and spec:
        return "folder", str(path)
    if path.is_file():
        raise DataError(
            f"the tokenizer {spec!r} is a file; give the folder that save_pretrained wrote"
        )
    if spec in ("", path.name):
        raise DataError(
            f"there is no tokenizer {spec!r}{near(word, ['byte', 'bpe'], 3)} Say byte, "
            "bpe,vocab=4096, a folder or hf:NAME"
        )
    raise DataError(f"the tokenizer {spec!r} cannot be read: {absent(path)}")


def _vocabulary(spec: str, specials: int) -> int:
    _, given = settings(spec, ["vocab"])
    if "vocab" not in given:
        raise DataError(f"{spec!r} needs the size of its vocabulary: say bpe,vocab=4096")
    try:
        vocabulary = int(given["vocab"])
    except ValueError:
        raise DataError(
            f"{spec!r}: vocab={given['vocab']} is no whole number; say how many tokens, such as "
            "vocab=4096"
        ) from None
    # The least vocabulary: all bytes, the special tokens, and one pair.
    least = BYTES + specials + 1
    if vocabulary < least:
        raise DataError(
            f"{spec!r}: {BYTES} bytes, {specials} special tokens and a pair take vocab={least} "
            "at least; or take byte"
        )
    return vocabulary


def _letters() -> list[str]:
    """Return the visible letter for each byte in GPT-2's tokenizer (Radford et al. 2019)."""
    visible = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    hidden = [byte for byte in range(BYTES) if byte not in visible]
    return [chr(byte if byte in visible else BYTES + hidden.index(byte)) for byte in range(BYTES)]


def _byte_level(vocabulary: dict[str, int], regex: bool) -> Tokenizer:
    """Return a byte encoder without merges; `regex` cuts the text into words first."""
    with extra("a tokenizer"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _trained(vocabulary: int, text: Text, specials: int) -> Tokenizer:
    backend = _byte_level({}, regex=True)
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(
        vocab_size=vocabulary - specials,
        # a pair seen once is no pattern: without this a short text ends as a list of its words
        min_frequency=2,
        initial_alphabet=_letters(),
        show_progress=False,
    )
    backend.train_from_iterator(
        (piece for document in text.train for piece in cut_text(document.decode())), trainer
    )
    return backend


def _dressed(backend: Tokenizer, specials: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the backend as a tokenizer of transformers, with its special tokens after all
    others."""
    with extra("a tokenizer"):
        from tokenizers import AddedToken
        from transformers import PreTrainedTokenizerFast

    # Special tokens must get new ids, after all others; one that is a word already does not.
    first = backend.get_vocab_size()
    backend.add_special_tokens(
        [AddedToken(special, special=True, normalized=False) for special in specials]
    )
    if [backend.token_to_id(special) for special in specials] != list(
        range(first, first + len(specials))
    ):
        raise DataError(
            f"of the special tokens {list(specials)} some are words of the text; name them as no "
            "word is, such as <mask>"
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,  # or decoding would turn " ." into "."
        model_input_names=[
            "input_ids",
            "attention_mask",
        ],  # without token_type_ids, which most causal models refuse
        extra_special_tokens=[special for special in specials if special not in ROLES],
        **{f"{ROLES[special]}_token": special for special in specials if special in ROLES},
    )


def _loaded(
    spec: str, location: str, local: bool, specials: Sequence[str]
) -> PreTrainedTokenizerFast:
    """Return a tokenizer from a folder or the hub, if it has what is needed."""
    with extra("a tokenizer"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # 1. Load, from the folder alone where it is one; no code of strangers is run.
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, local_files_only=local, trust_remote_code=False
        )
    # Whatever transformers, tokenizers and the HTTP client may raise: the user needs only its line.
    except Exception as error:
        where = (
            "the folder holds no tokenizer, or a damaged one"
            if local
            else "check the name; hf: needs the network or its cache"
        )
        raise DataError(
            f"the tokenizer {spec!r} cannot be loaded ({error_text(error)}): {where}"
        ) from error
    # 2. Refuse what cannot be used here.
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"the tokenizer {spec!r} has no fast form (tokenizer.json), which is needed here; "
            "save it as one first"
        )
    # Where config.json names a model but no tokenizer lies beside it, transformers makes up an
    # empty one of the model's kind.
    if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) < 2:
        raise DataError(
            f"the tokenizer {spec!r} has no vocabulary: no tokenizer.json lies there; save it "
            "there first"
        )
    lacking = [special for special in specials if not _has(tokenizer, special)]
    if lacking:
        first = ", ".join(
            f"{ROLES[special]} (such as {special})" if special in ROLES else special
            for special in lacking[:5]
        )
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise DataError(
            f"the tokenizer {spec!r} lacks special tokens that are needed here: {first}{more}; "
            "take byte or bpe,vocab=4096, or add "
            "them to a copy by its add_special_tokens and save_pretrained, and give that folder"
        )
    return tokenizer


def _has(tokenizer: PreTrainedTokenizerFast, special: str) -> bool:
    if special in ROLES:
        return getattr(tokenizer, f"{ROLES[special]}_token_id") is not None
    return special in tokenizer.get_added_vocab()


def _is_byte(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether each id is a byte, which numpy encodes without a tokenizer."""
    backend = tokenizer.backend_tokenizer
    if backend.get_vocab_size(with_added_tokens=False) != BYTES:
        return False
    plain = _byte_level({letter: byte for byte, letter in enumerate(_letters())}, regex=False)
    ours, its = (json.loads(each.to_str()) for each in (plain, backend))
    parts = ("model", "normalizer", "pre_tokenizer")
    added = its["added_tokens"]  # one that is not special would be found in the text, see `encode`
    return all(ours[part] == its[part] for part in parts) and all(
        token["special"] for token in added
    )


def _byte_ids(eos: int, documents: Iterable[bytes]) -> Iterator[NDArray[np.int32]]:
    for document in documents:
        ids = np.empty(len(document) + 1, dtype=np.int32)
        ids[:-1] = np.frombuffer(document, dtype=np.uint8)
        ids[-1] = eos
        yield ids


def _ids(
    tokenizer: PreTrainedTokenizerFast, eos: int, documents: Iterable[bytes]
) -> Iterator[NDArray[np.int32]]:
    from tokenizers import Tokenizer

    # A copy, because these settings are the caller's to keep.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # In tokenizers' words: special tokens in a text are encoded as the text that they are.
    backend.encode_special_tokens = (
        True  # in tokenizers' words: special tokens in a text are encoded as the text that they are
    )
    backend.no_truncation()
    backend.no_padding()
    parts: list[NDArray[np.int32]] = []
    # Pieces of documents in batches; the end token follows the last piece of each.
    for batch in _batches(documents):
        encodings = backend.encode_batch_fast(
            [piece for piece, _ in batch], add_special_tokens=False
        )
        for (_, last), encoding in zip(batch, encodings, strict=True):
            parts.append(np.array(encoding.ids, dtype=np.int32))
            if last:
                yield np.concatenate([*parts, np.array([eos], dtype=np.int32)])
                parts = []


def _batches(documents: Iterable[bytes]) -> Iterator[list[tuple[str, bool]]]:
    """Yield pieces of documents, and whether each ends its document, in lists of about `BATCH` full
    pieces."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        cut = list(cut_text(document.decode())) or [""]
        for number, piece in enumerate(cut, 1):
            batch.append((piece, number == len(cut)))
            size += len(piece)
            if size >= BATCH * PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
