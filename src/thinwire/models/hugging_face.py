"""Use Hugging Face's transformers: loaded on first use, without its notes, and with its errors in
one line."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinwire.errors import ModelError
from thinwire.text.words import error_text

CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "spans": "AutoModelForSeq2SeqLM",
}  # by objective


def need_transformers() -> None:
    """Import transformers, which takes seconds the first time.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"models need the package transformers ({error}): pip install 'thinwire[train]'"
        ) from error


def auto_class(objective: str) -> Any:
    """Return the class that builds and reads models for an objective."""
    import transformers

    return getattr(transformers, CLASSES[objective])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' notes, warnings and progress bars inside the block; errors are raised
    as usual."""
    from huggingface_hub.utils import logging as hub
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as own

    # Remember all settings, and put each back, since they are the program's and not ours.
    levels = own.get_verbosity(), hub.get_verbosity()
    bars = own.is_progress_bar_enabled(), not are_progress_bars_disabled()
    own.set_verbosity(logging.ERROR)
    hub.set_verbosity(logging.ERROR)
    own.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        if bars[0]:
            own.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
        if bars[1]:
            enable_progress_bars()


def save_pretrained(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights, configuration and tokenizer into a folder, on whichever rank calls it.

    Raises:
        ModelError: transformers wrote no weights.
    """
    with quiet():
        # transformers writes on rank 0 alone: hosts without it would keep a model without weights.
        vars(model)["should_save_on_this_rank"] = lambda is_main_process: is_main_process
        try:
            model.save_pretrained(folder)
        finally:
            del vars(model)["should_save_on_this_rank"]
        tokenizer.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"transformers wrote no weights into {folder}")


def reason(error: BaseException) -> str:
    """Return the message of an error in one line, without a full stop.

    Example:
        >>> head = "Class validation error for validator 'heads':\\n    ValueError: "
        >>> reason(ValueError(head + "96 is not a multiple of 5."))
        '96 is not a multiple of 5'
        >>> reason(KeyError("gelux"))
        "nothing is called 'gelux'"
    """
    if isinstance(error, KeyError):
        return f"nothing is called {error.args[0]!r}" if error.args else "a key is missing"
    return re.sub(
        r"^Class validation error for validator '\w+': \w+: ",
        "",
        error_text(error, most=1000).rstrip("."),
    )
