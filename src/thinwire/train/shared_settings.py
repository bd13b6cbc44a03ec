"""Compare the settings that must be the same on all ranks, beside those that `attach` compares."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from thinwire.train.setup import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = (
    "batch",
    "accumulate",
    "optimizer",
    "lr",
    "warmup",
    "decay_to",
    "weight_decay",
    "beta1",
    "beta2",
    "clip",
    "seed",
    "save_every",
    "validate_every",
    "windows",
)


def settings_of_all_ranks(prepared: Prepared, model: PreTrainedModel, steps: int) -> dict[str, Any]:
    """Return the settings that `must_agree` compares over ranks, by the name that an error shows.

    Args:
        prepared: what to train, on what, and how.
        model: the model as built on this rank.
        steps: how many batches each rank reads.
    """
    return {
        "objective": repr(prepared.objective),
        "text and tokenizer (digest)": prepared.tokens.digest,
        "model's configuration (digest)": configuration_digest(model),
        "steps": steps,
        **{name: getattr(prepared.config, name) for name in COMPARED},
    }


def configuration_digest(model: PreTrainedModel) -> str:
    """Return a digest of the model's configuration, such as its activation and its dropout."""
    compared = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    text = json.dumps(compared, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
