"""Read and check the `run.json` of finished runs, and list what differs between them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinwire.errors import ConfigError
from thinwire.train.folder import RUN
from thinwire.version import __version__

# What a run.json must hold, by its path: a type, or a list of one.
NUMBER, MAYBE = (int, float), (int, float, type(None))
HOLDS: dict[str, Any] = {
    "thinwire": str,
    "strategy": str,
    "objective": str,
    "precision": str,
    "device": str,
    "parameters": int,
    "world": int,
    "train_tokens": int,
    **{f"config.{key}": str for key in ("model", "data", "tokenizer", "strategy")},
    **{f"config.{key}": int for key in ("seed", "context", "batch", "accumulate")},
    **{
        f"result.{key}": NUMBER
        for key in ("validation_nats_per_token", "tokens_per_s", "train_s", "dense_bytes")
    },
    **{f"result.{key}": int for key in ("steps", "tokens")},
    **{f"result.{key}": MAYBE for key in ("validation_bits_per_byte", "ratio", "ratio_all")},
    **{f"result.{key}": [NUMBER] for key in ("sent_bytes", "around_bytes")},
    **{
        f"result.time_shares.{key}": NUMBER
        for key in ("compute", "exposed", "input", "encode", "wire")
    },
    "curve.train": [NUMBER],
    "curve.validation": [dict],
    "buckets": [dict],
}
# What should be the same, so that the strategy is what differs.
ALIKE = {
    "model": ("config.model", "parameters", "objective"),
    "data": ("config.data", "config.tokenizer", "train_tokens"),
    "tokens": ("result.tokens",),
    "seed": ("config.seed",),
    "context": ("config.context",),
    "tokens a batch of all ranks": ("world", "config.batch", "config.accumulate"),
    "device": ("device", "precision"),
}


def read(path: Path) -> dict[str, Any]:
    """Read the `run.json` of a finished run.

    Args:
        path: its folder, or the run.json in it.

    Raises:
        ConfigError: there is none, it is damaged, or another version of Thinwire wrote it.
    """
    file = path if path.suffix == ".json" else path / RUN
    # 1. Read; each way to fail has a hint of its own.
    if not path.exists():
        raise ConfigError(
            f"there is no run in {str(path)!r}: no such folder; give the --out of a finished run"
        )
    try:
        run = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError as error:
        hint = (
            "the run is not finished: `thinwire train --resume` continues it"
            if (path / "config.toml").exists()
            else "it is no run's"
        )
        raise ConfigError(f"the folder {str(path)!r} holds no {RUN}; {hint}") from error
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{str(file)!r} is damaged: it is no JSON ({error}); train again, or leave it out"
        ) from error
    # 2. The version before the content: another version's file is no damage.
    version = run.get("thinwire") if isinstance(run, dict) else None
    if isinstance(version, str) and version.split(".")[:2] != __version__.split(".")[:2]:
        raise ConfigError(
            f"{str(file)!r} is of Thinwire {version}, and this is {__version__}: compare it "
            "there, or train it again here"
        )
    # 3. Types and lengths, so that everything after this may index freely.
    if wrong := _damage(run):
        raise ConfigError(f"{str(file)!r} is damaged: {wrong}; train again, or leave it out")
    return dict(run)


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """List the settings that should be the same in all runs and are not, with the value of each
    run."""
    differing = {}
    for what, paths in ALIKE.items():
        values = [tuple(_at(run, path) for path in paths) for run in runs]
        # The factors of a batch may differ where their product agrees: compare the product.
        if what.startswith("tokens a batch"):
            values = [
                (math.prod(each) * run["config"]["context"],)
                for each, run in zip(values, runs, strict=True)
            ]
        if len(set(values)) > 1:
            # Show only the values that differ, not the whole tuple.
            distinct = [
                index
                for index in range(len(values[0]))
                if len({each[index] for each in values}) > 1
            ]
            differing[what] = tuple(
                " ".join(str(each[index]) for index in distinct) for each in values
            )
    return differing


def _damage(run: Any) -> str | None:  # noqa: PLR0911  (a reason each)
    """Return what is wrong with a run.json, or None."""
    for path, kind in HOLDS.items():
        try:
            value = _at(run, path)
        except (KeyError, TypeError):
            return f"{path} is missing"
        # A list as kind means a non-empty list of that kind. bool is an int in Python: refuse it.
        many = isinstance(kind, list)
        if many and not (isinstance(value, list) and value):
            return f"{path} is empty or no list"
        if not all(
            isinstance(each, kind[0] if many else kind) and not isinstance(each, bool)
            for each in (value if many else [value])
        ):
            return f"{path} is of another kind"
    if (
        len(run["result"]["sent_bytes"]) != run["world"]
        or len(run["curve"]["train"]) != run["result"]["steps"]
    ):
        return "its lists are of another length than its ranks or steps"
    for each in run["curve"]["validation"]:
        step, nats = each.get("step"), each.get("nats")
        if (
            type(step) is not int
            or not 0 <= step <= run["result"]["steps"]
            or not isinstance(nats, NUMBER)
        ):
            return "curve.validation holds something else than steps and nats"
    if not all(type(bucket.get("numel")) is int for bucket in run["buckets"]):
        return "a bucket has no numel"
    if (
        run["config"]["accumulate"] < 1
        or run["world"] < 1
        or run["result"]["validation_nats_per_token"] <= 0
    ):
        return "a figure is 0 or below that cannot be"
    return None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _at(run: Any, path: str) -> Any:
    for key in path.split("."):
        run = run[key]
    return run
