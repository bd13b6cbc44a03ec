"""Name models to train from scratch: each preset is a Hugging Face configuration, written as a row
of sizes.

    gpt2-nano                         a row as it is
    llama-nano,num_hidden_layers=6    a row with some of its settings; keys are Hugging Face's

gpt2 and llama are decoders (causal), bert is an encoder (masked), t5 reads with one and writes with
the other (spans). The vocabulary is the tokenizer's and the positions are the context's. Dropout is
0: pre-training reads a text about once, and has little to overfit; a key sets it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from thinwire.errors import ModelError
from thinwire.models.hugging_face import auto_class, need_transformers, quiet, reason
from thinwire.text.words import name_and_settings, near, settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Values = Mapping[str, int | float | str | bool | dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """One preset: `family` is Hugging Face's model type; `millions` counts its parameters with a
    vocabulary of bytes."""

    family: str
    about: str
    millions: float
    sizes: Values
    own: str = ""


OBJECTIVES = {"gpt2": "causal", "llama": "causal", "bert": "masked", "t5": "spans"}

# What all of a family share. GPT-2's own activation, gelu_new, is written out in eight element-wise
# steps and makes a step of gpt2-nano a quarter slower; the exact GELU is one kernel and differs
# from it by less than 0.001. T5 is v1.0 (ReLU, one embedding for reading and writing): transformers
# 5 always ties the two, which v1.1 does not; feed_forward_proj=gated-gelu gives v1.1's
# other change.
FAMILIES: dict[str, Values] = {
    "gpt2": {
        "activation_function": "gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {"attention_dropout": 0.0, "rms_norm_eps": 1e-5},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
}


def _gpt2(layers: int, heads: int, width: int) -> Values:
    return {"n_layer": layers, "n_head": heads, "n_embd": width}


def _llama(layers: int, heads: int, width: int, inner: int, **more: Any) -> Values:
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": inner,
    }
    return sizes | {"tie_word_embeddings": True} | more


def _bert(layers: int, heads: int, width: int) -> Values:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": 4 * width,
    }


def _t5(layers: int, heads: int, head: int, width: int) -> Values:
    return {
        "num_layers": layers,
        "num_heads": heads,
        "d_kv": head,
        "d_model": width,
        "d_ff": 4 * width,
    }


LLAMA_3 = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}
}  # unscaled: nothing stretches a context trained from scratch

PRESETS: dict[str, Preset] = {
    "gpt2-nano": Preset("gpt2", "4 layers of width 96, learned positions", 0.48, _gpt2(4, 4, 96)),
    "gpt2-mini": Preset("gpt2", "6 layers of width 384, learned positions", 10.8, _gpt2(6, 6, 384)),
    "gpt2": Preset(
        "gpt2",
        "GPT-2, 12 layers of width 768",
        85.4,
        _gpt2(12, 12, 768),
        "124 M with its own 50,257 tokens",
    ),
    "gpt2-medium": Preset(
        "gpt2",
        "GPT-2 medium, 24 layers of width 1024",
        303,
        _gpt2(24, 16, 1024),
        "355 M with its own 50,257 tokens",
    ),
    "llama-nano": Preset(
        "llama", "4 layers of width 96, rotary positions", 0.47, _llama(4, 4, 96, 256)
    ),
    "llama-mini": Preset(
        "llama", "6 layers of width 384, rotary positions", 10.7, _llama(6, 6, 384, 1024)
    ),
    "llama-160m": Preset(
        "llama",
        "JackFram/llama-160m, 12 layers of width 768",
        114,
        _llama(12, 12, 768, 3072, tie_word_embeddings=False),
        "162 M with its own 32,000 tokens",
    ),
    "llama-1b": Preset(
        "llama",
        "Llama 3.2 1B, 16 layers of width 2048",
        974,
        _llama(16, 32, 2048, 8192, num_key_value_heads=8, **LLAMA_3),
        "1,236 M with its own 128,256 tokens",
    ),
    "bert-nano": Preset("bert", "4 layers of width 96, learned positions", 0.49, _bert(4, 4, 96)),
    "bert-mini": Preset(
        "bert",
        "BERT mini, 4 layers of width 256",
        3.3,
        _bert(4, 4, 256),
        "11 M with its own 30,522 tokens",
    ),
    "bert": Preset(
        "bert",
        "BERT base, 12 layers of width 768",
        86,
        _bert(12, 12, 768),
        "110 M with its own 30,522 tokens",
    ),
    "t5-nano": Preset(
        "t5", "2 + 2 layers of width 96, relative positions", 0.54, _t5(2, 4, 24, 96)
    ),
    "t5-mini": Preset(
        "t5",
        "T5 efficient mini, 4 + 4 layers of width 384",
        19,
        _t5(4, 8, 64, 384),
        "31 M with its own 32,128 tokens",
    ),
    "t5-small": Preset(
        "t5",
        "T5 small, 6 + 6 layers of width 512",
        44,
        _t5(6, 8, 64, 512),
        "61 M with its own 32,128 tokens",
    ),
    "t5": Preset(
        "t5",
        "T5 base, 12 + 12 layers of width 768",
        198,
        _t5(12, 12, 64, 768),
        "223 M with its own 32,128 tokens",
    ),
}

FIXED = (
    # keys that the tokenizer, the family or the objective decides, or that change nothing here
    frozenset(
        (
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "is_decoder",
            "is_encoder_decoder",
            "add_cross_attention",
            "use_cache",
        ),
    )
    | {"pretraining_tp", "classifier_dropout"}
)
SCALARS = frozenset((int, float, bool, str, types.NoneType))


def presets() -> dict[str, str]:
    """Return every preset by its name, with a description and its size.

    Example:
        >>> presets()["gpt2-nano"]
        '4 layers of width 96, learned positions; 0.48 M parameters on bytes'
    """
    return {
        name: f"{row.about}; {row.millions:g} M parameters on bytes{row.own and ', ' + row.own}"
        for name, row in PRESETS.items()
    }


def preset(spec: str) -> Preset:
    """Return the preset that `spec` begins with.

    Raises:
        ModelError: no preset has that name.

    Example:
        >>> preset("llama-nano,num_hidden_layers=6").family
        'llama'
    """
    name, _ = name_and_settings(spec)
    if name not in PRESETS:
        choices = (
            f"There are: {', '.join(PRESETS)}; or give a folder with a config.json, or hf:NAME"
        )
        raise ModelError(f"no model is called {name!r}{near(name, PRESETS)} {choices}")
    return PRESETS[name]


def configuration(
    spec: str, *, vocab: int, context: int, eos: int | None = None, pad: int | None = None
) -> PreTrainedConfig:
    """Return the Hugging Face configuration of a preset.

    Args:
        spec: `NAME[,key=value…]`; keys are fields of the family's configuration, by their own
            names or by those that all families share (`hidden_size`, `num_hidden_layers`,
            `num_attention_heads`).
        vocab: how many tokens the tokenizer has.
        context: the longest row that the model will read, in tokens.
        eos: the token that ends a document.
        pad: the token that fills rows and from which t5 starts to write; decoders have none.

    Raises:
        ModelError: no such preset or key, a value of another type, or sizes that do not go
            together; all reasons that are known at once.

    Example:
        >>> configuration("gpt2-nano,num_hidden_layers=6", vocab=257, context=128, eos=256).n_layer
        6
        >>> configuration("gpt2-nano,n_layers=6", vocab=257, context=128)
        Traceback (most recent call last):
        ...
        thinwire.errors.ModelError: gpt2-nano has no setting 'n_layers'; did you mean 'n_layer'?
        gpt2-nano has: vocab_size, ...
    """
    row = preset(spec)
    need_transformers()
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # 1. Tokens: families of decoders begin a document with its end token, and need no padding.
    kind = CONFIG_MAPPING[row.family]
    tokens: dict[str, int | None] = {"eos_token_id": eos}
    if row.family in ("gpt2", "llama"):
        tokens |= {"bos_token_id": eos, "pad_token_id": None}
    else:
        tokens |= {"pad_token_id": pad}
    if row.family == "t5":
        tokens |= {"decoder_start_token_id": pad}
    # 2. Positions, by the family's own name for them; t5's are relative and have no limit.
    positions = (
        {}
        if row.family == "t5"
        else {kind.attribute_map.get("max_position_embeddings", "max_position_embeddings"): context}
    )
    # 3. Later entries win: the family's, the row's, then the user's.
    values = {
        **FAMILIES[row.family],
        **row.sizes,
        **tokens,
        "vocab_size": vocab,
        **positions,
        **_settings_of(spec, kind),
    }
    try:
        with quiet():
            made: PreTrainedConfig = AutoConfig.for_model(row.family, **values)
            return made
    # transformers raises a dozen kinds; all of them mean that these sizes cannot be.
    except Exception as error:
        raise ModelError(f"{spec}: {reason(error)}") from error


def parameters(spec: str, *, vocab: int, context: int) -> int:
    """Return the number of parameters of a preset, without allocating them.

    Raises:
        ModelError: as `configuration`, or sizes that do not go together.

    Example:
        >>> parameters("gpt2", vocab=50_257, context=1024)
        124439808
    """
    return sum(
        weight.numel()
        for weight in tried(
            spec, configuration(spec, vocab=vocab, context=context, pad=0)
        ).parameters()
    )


def tried(spec: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of a preset's configuration on the meta device, and run two tokens through
    it.

    Raises:
        ModelError: sizes that do not go together; some show only when the model is run.
    """
    inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device="meta")}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    try:
        with quiet(), torch.device("meta"), torch.no_grad():
            model: PreTrainedModel = auto_class(OBJECTIVES[config.model_type]).from_config(config)
            model(**inputs)
    except Exception as error:  # as above, and whatever torch raises for shapes that do not meet
        raise ModelError(f"{spec}: {reason(error)}") from error
    return model


def _settings_of(spec: str, kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the settings of `spec` by the configuration's own keys."""
    name, pairs = name_and_settings(spec)
    # Keys are the configuration's own and those that all families share; both mean one setting.
    own = {
        key: hint for key, hint in inspect.get_annotations(kind).items() if _is_simple(key, hint)
    }
    shared = {key: own[target] for key, target in kind.attribute_map.items() if target in own}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in settings(name, pairs, own | shared, problems).items():
        target = kind.attribute_map.get(key, key)
        if target in values:
            problems.append(f"{key} and {target} are one setting; give one of them")
        if type(value) is int and value < 1 and float not in typing.get_args(own[target]):
            problems.append(f"{name},{key}={value}: a model has at least 1 of it")
        values[target] = value
    if problems:
        raise ModelError("\n".join(problems))
    return values


def _is_simple(key: str, hint: Any) -> bool:
    """Return whether a key of a configuration can be set by a user, with one word as its value."""
    return (
        key not in FIXED
        and not key.startswith("summary_")
        and SCALARS.issuperset(typing.get_args(hint) or (hint,))
    )
