"""Define the settings of `thinwire train`: each is a flag, and a key of the TOML file of
`--config`.

`TrainConfig` is the table of all of them. Nothing here loads torch, so `--help` is instant. Whether
a model, a text and a strategy fit together is checked when they are built.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from thinwire.errors import ConfigError
from thinwire.text.words import near
from thinwire.train.values import (
    count,
    fraction,
    hosts,
    interval,
    one_of,
    positive,
    switch,
    whole,
)


def _setting(
    default: Any, parse: Callable[[str], Any], metavar: str, help_text: str, group: str
) -> Any:
    """Declare a setting: its default, how its text is read, and how `--help` shows it."""
    return field(
        default=default,
        metadata={"parse": parse, "metavar": metavar, "help": help_text, "group": group},
    )


MODEL, LENGTH, RANKS, OPTIMISATION, OUTPUT, REPORTS = (
    "model and data",
    "length of the run",
    "ranks and what they send",
    "optimisation",
    "output and checkpoints",
    "checks, validation and sample",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one training run. Every field is a flag of the same name.

    Example:
        >>> TrainConfig(steps=8).strategy
        'fedpaq,period=8'
    """

    model: str = _setting(
        "llama-nano",
        str,
        "MODEL",
        (
            "a preset, with settings such as llama-nano,num_hidden_layers=6; a saved folder; or "
            "hf:NAME"
        ),
        MODEL,
    )
    objective: str = _setting(
        "auto",
        one_of("auto", "causal", "masked", "spans"),
        "NAME",
        "causal, masked or spans; auto: the one the model is made for",
        MODEL,
    )
    data: str = _setting(
        "bundled",
        str,
        "TEXT",
        "bundled, a text file, a folder of text files, a URL, hf:NAME, or set:PATH",
        MODEL,
    )
    data_hosts: str = _setting(
        "",
        hosts,
        "HOSTS",
        ("other hosts that the URL of a text may redirect to, separated by commas; default: none"),
        MODEL,
    )
    tokenizer: str = _setting(
        "auto",
        str,
        "NAME",
        "byte; bpe,vocab=4096; or a folder. auto: that of the saved model, else byte",
        MODEL,
    )
    context: int = _setting(128, count, "N", "tokens in a row of a batch", MODEL)

    steps: int = _setting(
        960,
        count,
        "N",
        "batches of each rank, rounded up to the next step at which the strategy synchronises",
        LENGTH,
    )
    tokens: int = _setting(
        0,
        whole,
        "N",
        "tokens that all ranks read together, in place of --steps; 0: use --steps",
        LENGTH,
    )
    batch: int = _setting(8, count, "N", "rows in the batch of a rank", LENGTH)
    accumulate: int = _setting(1, count, "N", "batches for each optimiser step", LENGTH)

    strategy: str = _setting(
        "fedpaq,period=8",
        str,
        "NAME",
        "a recipe, with settings such as diloco,period=60; or the path of a .toml file",
        RANKS,
    )
    workers: int = _setting(1, count, "N", "ranks on this machine", RANKS)
    force: bool = _setting(
        False, switch, "", "start all --workers even where memory may be too small", RANKS
    )
    nodes: int = _setting(
        1, count, "N", "machines; run the same command on each, with another --node-rank", RANKS
    )
    node_rank: int = _setting(0, whole, "N", "number of this machine, from 0", RANKS)
    master: str = _setting(
        "",
        str,
        "HOST:PORT",
        "with --nodes: an address of machine 0 that all machines reach",
        RANKS,
    )
    restarts: int = _setting(
        0, whole, "N", "how often lost workers are started again, from the last checkpoint", RANKS
    )
    parallel: str = _setting(
        "ddp",
        one_of("ddp", "fsdp"),
        "NAME",
        "ddp: each rank holds the whole model; fsdp: ranks hold it together, a shard each",
        RANKS,
    )
    shards: int = _setting(
        0, whole, "N", "with fsdp: ranks that hold one model together; 0: those of a machine", RANKS
    )
    timeout: float = _setting(
        120.0,
        positive,
        "SECONDS",
        "time limit of one message; after it the lost ranks are reported",
        RANKS,
    )

    optimizer: str = _setting(
        "auto",
        one_of("auto", "adamw", "muon", "sgd"),
        "NAME",
        "adamw; muon (for hidden matrices, AdamW for the rest); or sgd, with --beta1 as its "
        "momentum. auto: adamw, or plain sgd where the strategy computes the update",
        OPTIMISATION,
    )
    lr: float = _setting(3e-3, positive, "X", "peak learning rate", OPTIMISATION)
    warmup: int = _setting(
        60, whole, "N", "steps until the peak, at most a quarter of the run", OPTIMISATION
    )
    decay_to: float = _setting(
        0.1,
        fraction,
        "X",
        "learning rate at the end of the cosine, as a fraction of the peak",
        OPTIMISATION,
    )
    weight_decay: float = _setting(
        0.1, fraction, "X", "weight decay of matrices; vectors have none", OPTIMISATION
    )
    beta1: float = _setting(
        0.9, fraction, "X", "first beta of AdamW; momentum of SGD", OPTIMISATION
    )
    beta2: float = _setting(0.95, fraction, "X", "second beta of AdamW", OPTIMISATION)
    clip: float = _setting(
        1.0, positive, "X", "largest gradient norm; longer gradients are scaled down", OPTIMISATION
    )
    nonfinite: Literal["raise", "skip"] = _setting(
        "raise",
        one_of("raise", "skip"),
        "NAME",
        (
            "what to do about gradients that are not finite. raise: end the run and name the "
            "rank; skip: skip the step on all ranks"
        ),
        OPTIMISATION,
    )
    seed: int = _setting(
        0, whole, "N", "seed of weights, batches, masks and all other random numbers", OPTIMISATION
    )
    precision: str = _setting(
        "auto",
        one_of("auto", "fp32", "bf16"),
        "NAME",
        "precision of products; weights stay fp32. auto: bf16 where the device is faster with it",
        OPTIMISATION,
    )
    device: str = _setting(
        "auto",
        one_of("auto", "cpu", "cuda"),
        "NAME",
        "auto: one GPU for each rank if there are enough, else the CPU",
        OPTIMISATION,
    )
    compile: bool = _setting(
        False,
        switch,
        "",
        "compile each block with torch.compile (takes minutes at the start)",
        OPTIMISATION,
    )

    out: str = _setting(
        "", str, "FOLDER", "folder for all output; default: runs/MODEL-STRATEGY", OUTPUT
    )
    resume: bool = _setting(
        False, switch, "", "continue from the newest checkpoint in --out, if there is one", OUTPUT
    )
    overwrite: bool = _setting(False, switch, "", "delete an earlier run in --out", OUTPUT)
    save_every: int = _setting(
        240, whole, "N", "steps between checkpoints; 0: only at the end", OUTPUT
    )
    keep: int = _setting(2, count, "N", "how many checkpoints to keep", OUTPUT)
    cache: str = _setting(
        "",
        str,
        "FOLDER",
        "folder for tokenised text; default: $THINWIRE_CACHE, or thinwire in the user's cache",
        OUTPUT,
    )

    check_every: str = _setting(
        "auto",
        interval,
        "N",
        (
            "steps between two comparisons of the ranks' weights; 0: never. auto: as often as it "
            "costs less than 0.5 %% of the time"
        ),
        REPORTS,
    )
    validate_every: int = _setting(240, count, "N", "steps between validations", REPORTS)
    windows: int = _setting(256, count, "N", "rows of held-out text to validate on", REPORTS)
    prompt: str = _setting(
        "",
        str,
        "TEXT",
        "prompt of the sample at the end; default: one that suits the objective",
        REPORTS,
    )
    sample: int = _setting(
        300, whole, "N", "tokens of the sample at the end; 0: no sample", REPORTS
    )


def check_interval(config: TrainConfig) -> int | Literal["auto"] | None:
    """Return `--check-every` as `attach` takes it.

    Example:
        >>> [check_interval(TrainConfig(check_every=each)) for each in ("auto", "50", "0")]
        ['auto', 50, None]
    """
    return "auto" if config.check_every == "auto" else int(config.check_every) or None


FIELDS: dict[str, Field[Any]] = {each.name: each for each in fields(TrainConfig)}


def flag(name: str) -> str:
    """Return the flag of a field.

    Example:
        >>> flag("save_every")
        '--save-every'
    """
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field, in groups.

    A flag that is not given is absent from the result, so that the key of a file is used.
    """
    parser.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="a TOML file with any of the settings below as keys",
    )
    groups: dict[str, Any] = {}
    for name, each in FIELDS.items():
        title, help_text = each.metadata["group"], each.metadata["help"]
        # A group appears with its first field; absent flags leave no attribute behind.
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        common = {"dest": name, "default": argparse.SUPPRESS}
        # A bool is a pair of flags, --x and --no-x.
        if each.type == "bool":
            groups[title].add_argument(
                flag(name), action=argparse.BooleanOptionalAction, help=help_text, **common
            )
        else:
            # "" and 0 stand for "off" or "choose", which the help text describes itself.
            default = f"; default {each.default}" if each.default not in ("", 0) else ""
            groups[title].add_argument(
                flag(name),
                type=each.metadata["parse"],
                metavar=each.metadata["metavar"],
                help=help_text + default,
                **common,
            )


def config_from(given: Mapping[str, Any], file: Path | None) -> TrainConfig:
    """Combine the settings of a file with those given as flags; flags take precedence.

    Raises:
        ConfigError: the file cannot be read, or has unknown keys or wrong values (all problems at
            once), or settings contradict each other.
    """
    from_file = _read(file) if file is not None else {}
    config = TrainConfig(**(from_file | dict(given)))
    if config.resume and config.overwrite:
        raise ConfigError(
            "--resume continues the run in --out, and --overwrite deletes it: give one of them"
        )
    return config


def flags_of(config: TrainConfig) -> list[str]:
    """Return the flags that give the same settings again.

    Example:
        >>> flags_of(TrainConfig(steps=8, resume=True))
        ['--steps=8', '--resume']
    """
    out = []
    for name, each in FIELDS.items():
        value = getattr(config, name)
        if value != each.default:
            out.append(flag(name) if value is True else f"{flag(name)}={value}")
    return out


def _read(path: Path) -> dict[str, Any]:
    """Read the settings of a TOML file."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from error
    # Collect every problem of the file, so that the user corrects all of them at once.
    problems, values = [], {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in FIELDS:
            problems.append(f"{path}: no setting is called {key!r}{near(name, FIELDS).rstrip('.')}")
            continue
        try:
            values[name] = _value(FIELDS[name], value)
        except argparse.ArgumentTypeError as error:
            problems.append(f"{path}: {key}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _value(each: Field[Any], value: Any) -> Any:
    """Check the TOML value of a field and return it as the field holds it."""
    if isinstance(value, bool) != (each.type == "bool") or not isinstance(value, str | int | float):
        kinds = {"bool": "true or false", "int": "a number", "float": "a number"}
        raise argparse.ArgumentTypeError(
            f"expected {kinds.get(str(each.type), 'text')}, got {value!r}"
        )
    return value if isinstance(value, bool) else each.metadata["parse"](str(value))
