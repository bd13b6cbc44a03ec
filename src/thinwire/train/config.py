"""What `thinwire train` may be asked, once: every setting is a flag and a key of the TOML file that
`--config` names.

The table is the dataclass below. Nothing here loads torch, so that `--help` is instant; whether a
model, a text and a strategy fit one another is found out when they are built.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from thinwire.errors import ConfigError
from thinwire.words import near


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def interval(text: str) -> str:
    """`auto`, or a whole number of at least 0."""
    return text if text == "auto" else str(_whole(text, 0))


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def switch(text: str) -> bool:
    """`true` or `false`, as TOML writes it."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def hosts(text: str) -> str:
    """Names of hosts, with commas between."""
    from thinwire.data.remote.leads import host_names

    try:
        return ",".join(host_names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def one_of(*words: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(words)}{near(text, words).rstrip('.')}"
            )
        return text

    return parse


def _whole(text: str, least: int) -> int:
    plain = text.replace("_", "")
    if not (plain.isascii() and plain.isdecimal()) or not least <= int(plain) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(plain)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _set(default: Any, parse: Callable[[str], Any], metavar: str, told: str, group: str) -> Any:
    return field(
        default=default, metadata={"parse": parse, "metavar": metavar, "told": told, "group": group}
    )


WHAT, HOW_LONG, TALK, MATHS, WHERE, WATCH = (
    "what to train",
    "how long",
    "how ranks talk",
    "optimisation",
    "where things go",
    "what to see",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, as one would say it again. Every field is a flag; `told` is its help.

    Example:
        >>> TrainConfig(steps=8).strategy
        'fedpaq,period=8'
    """

    model: str = _set(
        "llama-nano",
        str,
        "MODEL",
        (
            "a preset, with settings such as llama-nano,num_hidden_layers=6; a saved folder; or "
            "hf:NAME"
        ),
        WHAT,
    )
    objective: str = _set(
        "auto",
        one_of("auto", "causal", "masked", "spans"),
        "NAME",
        "causal, masked or spans; auto: what the model is for",
        WHAT,
    )
    data: str = _set(
        "bundled",
        str,
        "TEXT",
        "bundled, a text file, a folder of them, an address, hf:NAME, or set:PLACE",
        WHAT,
    )
    data_hosts: str = _set(
        "",
        hosts,
        "HOSTS",
        (
            "that the address of a text may lead to, beside its own, with commas between; "
            "default: none"
        ),
        WHAT,
    )
    tokenizer: str = _set(
        "auto",
        str,
        "NAME",
        "byte; bpe,vocab=4096; or a folder. auto: the saved model's own, else byte",
        WHAT,
    )
    context: int = _set(128, count, "N", "tokens to a row", WHAT)

    steps: int = _set(
        960, count, "N", "batches to a rank, rounded up to where the strategy lands", HOW_LONG
    )
    tokens: int = _set(
        0,
        whole,
        "N",
        "instead of --steps: tokens that all ranks read together; 0: --steps holds",
        HOW_LONG,
    )
    batch: int = _set(8, count, "N", "rows to a rank's batch", HOW_LONG)
    accumulate: int = _set(1, count, "N", "batches to an optimiser step", HOW_LONG)

    strategy: str = _set(
        "fedpaq,period=8",
        str,
        "NAME",
        "a recipe, with settings such as diloco,period=60; or the path of a .toml file",
        TALK,
    )
    workers: int = _set(1, count, "N", "ranks on this machine", TALK)
    force: bool = _set(False, switch, "", "start --workers though memory may not hold them", TALK)
    nodes: int = _set(
        1, count, "N", "machines; the same command on each, but for --node-rank", TALK
    )
    node_rank: int = _set(0, whole, "N", "this machine's number, from 0", TALK)
    master: str = _set(
        "",
        str,
        "HOST:PORT",
        "with --nodes: where machine 0 listens, an address that all reach",
        TALK,
    )
    restarts: int = _set(
        0, whole, "N", "times that lost workers are started again, from the last checkpoint", TALK
    )
    timeout: float = _set(
        120.0,
        positive,
        "SECONDS",
        "the longest that one message may take; then the lost ranks are named",
        TALK,
    )

    optimizer: str = _set(
        "auto",
        one_of("auto", "adamw", "muon", "sgd"),
        "NAME",
        "adamw; muon, for matrices inside, and AdamW for the rest; sgd, with --beta1 as its "
        "momentum. auto: adamw, or the plain sgd of a "
        "strategy that makes the update itself",
        MATHS,
    )
    lr: float = _set(3e-3, positive, "X", "the peak of the learning rate", MATHS)
    warmup: int = _set(60, whole, "N", "steps up to the peak, at most a quarter of the run", MATHS)
    decay_to: float = _set(0.1, share, "X", "the share of the peak where the cosine ends", MATHS)
    weight_decay: float = _set(0.1, share, "X", "of matrices; vectors have none", MATHS)
    beta1: float = _set(0.9, share, "X", "AdamW's first beta; SGD's momentum", MATHS)
    beta2: float = _set(0.95, share, "X", "AdamW's second beta", MATHS)
    clip: float = _set(1.0, positive, "X", "the largest norm of a gradient", MATHS)
    nonfinite: Literal["raise", "skip"] = _set(
        "raise",
        one_of("raise", "skip"),
        "NAME",
        (
            "gradients that are not finite: raise ends the run and names the rank; skip leaves "
            "the step out on all ranks"
        ),
        MATHS,
    )
    seed: int = _set(0, whole, "N", "of weights, batches, masks and every draw", MATHS)
    precision: str = _set(
        "auto",
        one_of("auto", "fp32", "bf16"),
        "NAME",
        "of products; weights stay fp32. auto: bf16 where the device computes in it",
        MATHS,
    )
    device: str = _set(
        "auto",
        one_of("auto", "cpu", "cuda"),
        "NAME",
        "auto: a GPU for each rank where there are enough",
        MATHS,
    )
    compile: bool = _set(
        False, switch, "", "compile each block with torch.compile (minutes at first)", MATHS
    )

    out: str = _set("", str, "FOLDER", "default: runs/MODEL-STRATEGY", WHERE)
    resume: bool = _set(
        False, switch, "", "go on from the newest checkpoint in --out, where there is one", WHERE
    )
    overwrite: bool = _set(False, switch, "", "delete an earlier run in --out", WHERE)
    save_every: int = _set(240, whole, "N", "steps between checkpoints; 0: only at the end", WHERE)
    keep: int = _set(2, count, "N", "newest checkpoints to keep", WHERE)
    cache: str = _set(
        "",
        str,
        "FOLDER",
        "tokenised text; default: $THINWIRE_CACHE, or thinwire in the user's cache",
        WHERE,
    )

    check_every: str = _set(
        "auto",
        interval,
        "N",
        (
            "steps between two comparisons of ranks' weights; 0: none. auto: as often as costs "
            "less than 0.5 %% of the time"
        ),
        WATCH,
    )
    validate_every: int = _set(240, count, "N", "steps between validations", WATCH)
    windows: int = _set(256, count, "N", "rows of held-out text to validate on", WATCH)
    prompt: str = _set(
        "",
        str,
        "TEXT",
        "what the sample at the end goes on from; default: one that suits the objective",
        WATCH,
    )
    sample: int = _set(300, whole, "N", "tokens of it; 0: none", WATCH)


def checks_of(config: TrainConfig) -> int | Literal["auto"] | None:
    """Return `--check-every` as `attach` wants it.

    Example:
        >>> [checks_of(TrainConfig(check_every=each)) for each in ("auto", "50", "0")]
        ['auto', 50, None]
    """
    return "auto" if config.check_every == "auto" else int(config.check_every) or None


FIELDS: dict[str, Field[Any]] = {each.name: each for each in fields(TrainConfig)}


def flag(name: str) -> str:
    """The flag of a field.

    Example:
        >>> flag("save_every")
        '--save-every'
    """
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every field as a flag, in its group; one that is not given is absent, so that a file's key
    holds."""
    parser.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="a TOML file with any of the settings below, as keys",
    )
    groups: dict[str, Any] = {}
    for name, each in FIELDS.items():
        told = each.metadata
        group = groups.setdefault(told["group"], None) or parser.add_argument_group(told["group"])
        groups[told["group"]] = group
        if each.type == "bool":
            group.add_argument(
                flag(name),
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=told["told"],
            )
        else:
            shown = f"; default {each.default}" if each.default not in ("", 0) else ""
            group.add_argument(
                flag(name),
                dest=name,
                type=told["parse"],
                default=argparse.SUPPRESS,
                metavar=told["metavar"],
                help=told["told"] + shown,
            )


def config_from(given: Mapping[str, Any], file: Path | None) -> TrainConfig:
    """The settings of a file, and over them those given as flags.

    Raises:
        ConfigError: the file cannot be read, has unknown keys or wrong values (all reasons at
            once), or settings contradict each other.
    """
    told = _read(file) if file is not None else {}
    config = TrainConfig(**(told | dict(given)))
    if config.resume and config.overwrite:
        raise ConfigError(
            "--resume goes on with the run in --out, --overwrite deletes it: give one of them"
        )
    return config


def flags_of(config: TrainConfig) -> list[str]:
    """The flags that say `config` again.

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
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path} is no TOML: {error}") from error
    reasons, told = [], {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in FIELDS:
            reasons.append(f"{path}: no setting is called {key!r}{near(name, FIELDS).rstrip('.')}")
            continue
        try:
            told[name] = _value(FIELDS[name], value)
        except argparse.ArgumentTypeError as error:
            reasons.append(f"{path}: {key}: {error}")
    if reasons:
        raise ConfigError("\n".join(reasons))
    return told


def _value(each: Field[Any], value: Any) -> Any:
    if isinstance(value, bool) != (each.type == "bool") or not isinstance(value, str | int | float):
        wanted = (
            "true or false"
            if each.type == "bool"
            else "a number"
            if each.type in ("int", "float")
            else "text"
        )
        raise argparse.ArgumentTypeError(f"{value!r} is not {wanted}")
    return value if isinstance(value, bool) else each.metadata["parse"](str(value))
