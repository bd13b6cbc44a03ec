"""Build a model: a preset from scratch, a saved folder, or a model of the Hugging Face hub.

    gpt2-nano,num_hidden_layers=6   see `thinwire.models.presets`; torch.manual_seed before decides
                                    the weights
    runs/mine/model                 a folder that `save_pretrained` wrote
    hf:openai-community/gpt2        from the hub, or from its cache where there is no network

Whatever does not fit its tokenizer and context is refused before weights are read. Weights are
float32, and code that comes with a model is never run.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from thinwire.errors import ModelError
from thinwire.models.hugging_face import auto_class, need_transformers, quiet, reason
from thinwire.models.presets import OBJECTIVES, PRESETS, configuration, preset, tried
from thinwire.text.words import name_and_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HUB = "hf:"
BYTES, CONTEXT = (
    257,
    128,
)  # the vocabulary and the positions of a preset whose text is not known: those of `thinwire train`


def model_from(spec: str, tokenizer: PreTrainedTokenizerBase, context: int) -> PreTrainedModel:
    """Return the model that `spec` names, ready to be trained on rows of `context` tokens.

    Args:
        spec: a preset with its settings, a folder, or `hf:NAME`.
        tokenizer: whose ids it will read; a preset gets as large a vocabulary, and its special
            tokens.
        context: the longest row, in tokens.

    Raises:
        ModelError: no such model, sizes that do not go together, weights that are damaged or of
            another kind of model, or a model that the tokenizer or the context does not fit.

    Example:
        >>> from thinwire.data.corpus.text import Text
        >>> from thinwire.data.corpus.tokenizer import tokenizer_from
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), ["<|endoftext|>"])
        >>> model_from("gpt2-nano", tokenizer, context=128).num_parameters()
        484512
    """
    # What does not fit is refused before a large model is made or read.
    config, location, local = fitting(spec, tokenizer, context)
    if not location:
        tried(spec, config)
        try:
            with quiet():
                model: PreTrainedModel = auto_class(OBJECTIVES[config.model_type]).from_config(
                    config
                )
        except Exception as error:  # too large for this machine, mostly
            raise ModelError(f"{spec} cannot be built: {reason(error)}") from error
    else:
        model = _weights(spec, location, local, config)
    model.train()
    return model


def fitting(
    spec: str, tokenizer: PreTrainedTokenizerBase, context: int
) -> tuple[PreTrainedConfig, str, bool]:
    """Return a model's configuration, which suits tokenizer and context; where its weights are, ""
    for a preset; and whether they must be on this machine.

    Raises:
        ModelError: as `model_from`, but of weights.
    """
    location, local = "", True
    if is_preset(spec):
        eos, pad = _id(tokenizer.eos_token_id), _id(tokenizer.pad_token_id)
        config = configuration(spec, vocab=len(tokenizer), context=context, eos=eos, pad=pad)
    else:
        location, local = _locate(spec)
        config = _config(spec, location, local)
    _check_fit(spec, config, tokenizer, context)
    return config, location, local


def meta_model(spec: str) -> PreTrainedModel:
    """Return the model that `spec` names on the meta device: shapes without storage; no weights are
    read.

    A preset has the bytes for a vocabulary, unless its settings say otherwise.

    Raises:
        ModelError: no such model, or sizes that do not go together.

    Example:
        >>> model = meta_model("gpt2-nano")
        >>> model.num_parameters(), next(model.parameters()).device.type
        (484512, 'meta')
    """
    if is_preset(spec):
        return tried(spec, configuration(spec, vocab=BYTES, context=CONTEXT))
    location, local = _locate(spec)
    config = _config(spec, location, local)
    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = auto_class(objective_of(config)).from_config(config)
    except ModelError:
        raise
    except Exception as error:  # sizes that do not go together show in many ways
        raise ModelError(f"{spec}: {reason(error)}") from error
    return model


def kind_of(spec: str) -> str:
    """Return what the model that `spec` names is trained for: `causal`, `masked` or `spans`. Of a
    folder or the hub only the configuration is read.

    Raises:
        ModelError: no such model, or none that is trained for one of these.

    Example:
        >>> kind_of("t5-nano")
        'spans'
    """
    if is_preset(spec):
        return OBJECTIVES[preset(spec).family]
    location, local = _locate(spec)
    return objective_of(_config(spec, location, local))


def objective_of(config: PreTrainedConfig) -> str:
    """Return what a model with this configuration is trained for: `causal`, `masked` or `spans`.

    Raises:
        ModelError: none of these.

    Example:
        >>> objective_of(configuration("bert-nano", vocab=259, context=128))
        'masked'
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if config.is_encoder_decoder and kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "spans"
    # Encoders such as BERT can be decoders too, and are listed with both; they say so in
    # is_decoder.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "masked"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ModelError(
        f"a model of type {kind!r} is no decoder, encoder or encoder-decoder of text, and there "
        "is no objective for it"
    )


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model can read at once; None if only memory limits it.

    Example:
        >>> positions_of(configuration("gpt2-nano", vocab=257, context=64))
        64
        >>> positions_of(configuration("t5-nano", vocab=300, context=64)) is None
        True
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if "roberta" in config.model_type or config.model_type in (
        "camembert",
        "data2vec-text",
        "xmod",
    ):
        positions -= (
            config.pad_token_id or 0
        ) + 1  # RoBERTa counts positions from behind its padding token
    return positions


def is_preset(spec: str) -> bool:
    """Return whether `spec` names a preset. Text that cannot be a path counts as a misspelt
    preset."""
    if name_and_settings(spec)[0] in PRESETS:
        return True
    if spec.startswith((HUB, ".", "~")) or os.sep in spec or Path(spec).exists():
        return False
    preset(spec)  # raises an error that lists them
    return True


def _locate(spec: str) -> tuple[str, bool]:
    """Return the name that transformers uses, and whether the model must be on this machine."""
    need_transformers()
    if spec.startswith(HUB):
        name = spec.removeprefix(HUB)
        if not name:
            raise ModelError("hf: names no model; say hf:NAME, such as hf:openai-community/gpt2")
        return name, not _hub_answers()
    # A folder is given as it is, or one level too high; then the message names the right one.
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"the model {spec!r} is {'a file' if folder.exists() else 'not there'}; give the "
            "folder that save_pretrained wrote"
        )
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = (
            f"; did you mean {str(inner)!r}?"
            if (inner / "config.json").is_file()
            else "; give the folder that save_pretrained wrote"
        )
        raise ModelError(f"the folder {spec!r} has no config.json, so it holds no model{hint}")
    return str(folder), True


def _hub_answers() -> bool:
    """Return whether the hub's host name resolves here. Without a network the hub's client would
    try for half a minute before it reads its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():  # the proxy finds it
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _config(spec: str, location: str, local: bool) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                location, local_files_only=local, trust_remote_code=False
            )
            return config
    except (
        Exception
    ) as error:  # whatever transformers and its HTTP client may raise; the user needs its line only
        raise ModelError(_unread(spec, local, error)) from error


def _weights(spec: str, location: str, local: bool, config: PreTrainedConfig) -> PreTrainedModel:
    # safetensors alone: .bin files are pickles
    options: dict[str, Any] = {
        "local_files_only": local,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    try:
        with quiet():
            model, loading_info = auto_class(objective_of(config)).from_pretrained(
                location, config=config, dtype=torch.float32, **options
            )
    except ModelError:
        raise
    # As for the configuration, and whatever safetensors and pickle raise for damaged weights.
    except Exception as error:
        raise ModelError(_unread(spec, local, error)) from error
    # transformers fills what a file lacks with random numbers, and notes it.
    if lacking := sorted(
        {*loading_info["missing_keys"], *(each[0] for each in loading_info["mismatched_keys"])}
    ):
        shown = ", ".join(lacking[:3]) + (
            f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        )
        raise ModelError(
            f"the weights of {spec!r} lack {shown}, which a {type(model).__name__} has; it was "
            "saved without its head, or from another "
            "kind of model: save the whole model"
        )
    loaded: PreTrainedModel = model
    return loaded


def _unread(spec: str, local: bool, error: Exception) -> str:
    if not spec.startswith(HUB):
        return f"the model {spec!r} cannot be read: {reason(error)}"
    if local and isinstance(error, OSError):
        return (
            f"the model {spec!r} is not in this machine's cache, and the hub cannot be reached; "
            "connect, or give a folder with it"
        )
    return (
        f"the model {spec!r} cannot be had from the hub: {reason(error)}; check its name and "
        "the network, or give a folder with it"
    )


def _check_fit(
    spec: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, context: int
) -> None:
    """Refuse a tokenizer or context that does not fit the model."""
    # All problems at once. Embeddings may be more than tokens, never fewer.
    problems = []
    rows, positions = config.vocab_size, positions_of(config)
    if len(tokenizer) > rows:
        problems.append(
            (
                f"the tokenizer has {len(tokenizer):,} tokens, but {spec} has embeddings for "
                f"{rows:,}; "
            )
            + (
                "leave vocab_size out"
                if is_preset(spec)
                else "take the model's own tokenizer, or one with fewer tokens"
            )
        )
    if positions is not None and context > positions:
        problems.append(
            f"rows of {context:,} tokens were requested, but {spec} has {positions:,} "
            "positions; take a shorter context"
        )
    # T5 is trained to start from padding; another start would be a token that it never saw there.
    start, pad = getattr(config, "decoder_start_token_id", None), tokenizer.pad_token_id
    if objective_of(config) == "spans" and (start is None or start != pad):
        problems.append(
            f"{spec} starts to write from token {start}, but is trained to start from the "
            f"tokenizer's padding, which is {pad}; "
            "take the model's own tokenizer, or a t5"
        )
    if problems:
        raise ModelError("\n".join(problems))


def _id(token: Any) -> int | None:
    """Return the id of a special token; transformers allows lists of ids, which are refused."""
    return token if isinstance(token, int) else None
