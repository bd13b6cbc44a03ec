"""Read documents from a dataset of the Hugging Face hub, or from a local folder in the same layout,
with `datasets`.

hf:roneneldan/TinyStories
hf:Salesforce/wikitext,config=wikitext-2-raw-v1,split=train[:10%],field=text
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from thinwire.data._specs import extra, settings
from thinwire.errors import DataError
from thinwire.text.words import error_text, near

HELD_SPLITS = ("validation", "test")  # the first of these that a dataset has is held out


Read = Callable[[], Iterator[bytes]]


def hub_documents(spec: str) -> tuple[Read, Read | None]:
    """Return readers of the documents to train on, and of those to hold out if the dataset has a
    split for it.

    Args:
        spec: `hf:NAME`, with any of `config=`, `split=` (default train) and `field=` (default
            text).

    Raises:
        DataError: `datasets` is missing, the hub cannot be reached, or there is no such dataset,
            config, split or field.
    """
    name, given = settings(spec, ["config", "split", "field"])
    name = name.removeprefix("hf:")
    if not name:
        raise DataError(
            f"{spec!r} names no dataset; say hf:NAME, such as hf:roneneldan/TinyStories"
        )
    config, split, field = (
        given.get("config"),
        given.get("split", "train"),
        given.get("field", "text"),
    )
    rows = _load(name, config, split)
    # `train[:10%]` is of train: the split to hold out must not be one of those.
    options = {re.split(r"\[", part.strip())[0] for part in split.split("+")}
    held_split = next(
        (held for held in HELD_SPLITS if held in (rows.info.splits or {}) and held not in options),
        None,
    )
    held = _documents(_load(name, config, held_split), field, name) if held_split else None
    return _documents(rows, field, name), held


def _load(name: str, config: str | None, split: str) -> Any:
    with extra(f"the dataset {name!r}", "hub"):
        import datasets  # type: ignore[import-untyped, unused-ignore]
    try:
        return datasets.load_dataset(name, config, split=split)
    # Whatever datasets, pyarrow, fsspec and the HTTP client may raise: the user needs its line
    # only.
    except Exception as error:
        raise DataError(
            f"the dataset {name!r} cannot be loaded ({error_text(error)}): check its name, config "
            "and split; "
            "hf: needs the network, unless NAME is a local folder or was loaded before"
        ) from error


def _documents(rows: Any, field: str, name: str) -> Read:
    if field not in rows.column_names:
        columns = list(rows.column_names)
        raise DataError(
            f"the dataset {name!r} has no field {field!r}{near(field, columns, 3)} Say field= one "
            f"of: {', '.join(columns)}"
        )

    def read() -> Iterator[bytes]:
        for batch in rows.with_format("arrow").iter(1000):
            texts = batch[field].to_pylist()
            strange = next((text for text in texts if not isinstance(text, str | None)), None)
            if strange is not None:
                raise DataError(
                    f"the field {field!r} of the dataset {name!r} holds {type(strange).__name__}, "
                    "not text; say field=…"
                )
            # A row without text is no document.
            yield from (text.encode() for text in texts if text)

    return read
