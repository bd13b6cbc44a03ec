"""`thinwire compare`: finished runs side by side, as a table and as a picture.

It reads what each run wrote into its `run.json`. The first run is what the others are held against; where runs differ in more than how
their ranks talk, it says so, because then the strategy is not all that the figures compare.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import ConfigError
from thinwire.say import Say
from thinwire.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

ABOUT = """\
Finished runs side by side: a table, and a picture of their loss against steps and against bytes.

    thinwire compare runs/dense runs/diloco                 the first is what the others are held against
    thinwire compare runs/* --out figures/loss.svg
"""
RUN = "run.json"
COLUMN = 16  # the least width of a run's column
LABELS = 18
WIDEST = 120

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
    **{f"result.{key}": NUMBER for key in ("validation_nats_per_token", "tokens_per_s", "train_s", "dense_bytes")},
    **{f"result.{key}": int for key in ("steps", "tokens")},
    **{f"result.{key}": MAYBE for key in ("validation_bits_per_byte", "ratio", "ratio_all")},
    **{f"result.{key}": [NUMBER] for key in ("sent_bytes", "around_bytes")},
    **{f"result.time_shares.{key}": NUMBER for key in ("compute", "exposed", "input", "encode", "wire")},
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


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `thinwire compare`."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run's folder, or its run.json")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("compare.svg"), help="the picture; default compare.svg")


def run(options: argparse.Namespace, say: Say) -> int:
    """Read the runs, draw them, and tell."""
    folders = [Path(folder) for folder in options.folders]
    if options.out.suffix != ".svg":
        raise ConfigError(f"--out {options.out}: the picture is an SVG; give a name that ends in .svg")
    if not options.out.resolve().parent.is_dir():
        raise ConfigError(f"--out {options.out}: the folder {str(options.out.parent)!r} does not exist; make it first")
    if twice := [str(folder) for place, folder in enumerate(folders) if folder.resolve() in [each.resolve() for each in folders[:place]]]:
        raise ConfigError(f"{twice[0]!r} is given twice; once is enough")
    runs = [read(folder) for folder in folders]
    names = _names(folders, runs)
    differ = differences(runs)
    for what, values in differ.items():
        say.note(f"warning: the runs differ in {what} ({', '.join(map(str, values))}): the strategy is not all that is compared here")
    from thinwire.train.plot import draw  # loads torch, to play the schedules: after all that can be refused without it

    picture = draw(runs, names, options.out)
    rows = [_figures(folder, each, runs[0]) for folder, each in zip(folders, runs, strict=True)]
    told = {"runs": rows, "differ": {what: list(each) for what, each in differ.items()}, "picture": str(picture)}
    say.result(told, _text(rows, names, picture))
    return 0


def read(place: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Args:
        place: its folder, or the run.json in it.

    Raises:
        ConfigError: there is none, it is damaged, or another version of Thinwire wrote it.
    """
    file = place if place.suffix == ".json" else place / RUN
    if not place.exists():
        raise ConfigError(f"there is no run in {str(place)!r}: no such folder; give the --out of a finished run")
    try:
        run = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError as error:
        hint = (
            "the run is not finished: `thinwire train --resume` goes on with it" if (place / "config.toml").exists() else "it is no run's"
        )
        raise ConfigError(f"the folder {str(place)!r} holds no {RUN}; {hint}") from error
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r} is damaged: it is no JSON ({error}); train again, or leave it out") from error
    version = run.get("thinwire") if isinstance(run, dict) else None
    if isinstance(version, str) and version.split(".")[:2] != __version__.split(".")[:2]:
        raise ConfigError(f"{str(file)!r} is of Thinwire {version}, and this is {__version__}: compare it there, or train it again here")
    if wrong := _damage(run):
        raise ConfigError(f"{str(file)!r} is damaged: {wrong}; train again, or leave it out")
    return dict(run)


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """What is not the same in all runs although it should be, with each run's own."""
    found = {}
    for what, paths in ALIKE.items():
        values = [tuple(_at(run, path) for path in paths) for run in runs]
        if what.startswith("tokens a batch"):
            values = [(math.prod(each) * run["config"]["context"],) for each, run in zip(values, runs, strict=True)]
        if len(set(values)) > 1:
            telling = [place for place in range(len(values[0])) if len({each[place] for each in values}) > 1]
            found[what] = tuple(" ".join(str(each[place]) for place in telling) for each in values)
    return found


def _damage(run: Any) -> str | None:  # noqa: PLR0911  (a reason each)
    """What is wrong with a run.json, or None."""
    for path, kind in HOLDS.items():
        try:
            value = _at(run, path)
        except (KeyError, TypeError):
            return f"{path} is missing"
        many = isinstance(kind, list)
        if many and not (isinstance(value, list) and value):
            return f"{path} is empty or no list"
        if not all(isinstance(each, kind[0] if many else kind) and not isinstance(each, bool) for each in (value if many else [value])):
            return f"{path} is of another kind"
    if len(run["result"]["sent_bytes"]) != run["world"] or len(run["curve"]["train"]) != run["result"]["steps"]:
        return "its lists are of another length than its ranks or steps"
    for each in run["curve"]["validation"]:
        step, nats = each.get("step"), each.get("nats")
        if type(step) is not int or not 0 <= step <= run["result"]["steps"] or not isinstance(nats, NUMBER):
            return "curve.validation holds something else than steps and nats"
    if not all(type(bucket.get("numel")) is int for bucket in run["buckets"]):
        return "a bucket has no numel"
    if run["config"]["accumulate"] < 1 or run["world"] < 1 or run["result"]["validation_nats_per_token"] <= 0:
        return "a figure is 0 or below that cannot be"
    return None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _at(run: Any, path: str) -> Any:
    for key in path.split("."):
        run = run[key]
    return run


def _names(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Strategies, where they tell the runs apart; else folders."""
    for names in (
        [str(run["config"]["strategy"]) for run in runs],
        [(f.parent if f.suffix == ".json" else f).resolve().name for f in folders],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _figures(folder: Path, run: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    result, world = run["result"], run["world"]
    nats = result["validation_nats_per_token"]
    return {
        "folder": str(folder),
        "model": run["config"]["model"],
        "strategy": run["config"]["strategy"],
        "world": world,
        "steps": result["steps"],
        "tokens": result["tokens"],
        "seed": run["config"]["seed"],
        "validation_nats_per_token": nats,
        "gap": nats / first["result"]["validation_nats_per_token"] - 1,
        "validation_bits_per_byte": result["validation_bits_per_byte"],
        "sent_bytes_per_rank": sum(result["sent_bytes"]) / world,
        "around_bytes_per_rank": sum(result["around_bytes"]) / world,
        "ratio": result["ratio"],
        "ratio_all": result["ratio_all"],
        "tokens_per_s": result["tokens_per_s"],
        "train_s": result["train_s"],
        "time_shares": result["time_shares"],
    }


def _text(rows: Sequence[dict[str, Any]], names: Sequence[str], picture: Path) -> str:
    """The table, in as many parts as the terminal is narrow."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConfigError(f"the table needs rich ({error}): pip install 'thinwire[train]', or ask for --json") from error
    from thinwire.train.show import written

    wide = min(Console().width, WIDEST)
    console = Console(file=io.StringIO(), highlight=False, width=wide)
    fit = max(1, (wide - LABELS) // (COLUMN + 2))
    for begin in range(0, len(rows), fit):
        some = slice(begin, begin + fit)
        console.print(_table(rows[some], names[some], (wide - LABELS) // len(rows[some]) - 2))
    console.print(f"the picture: {picture}", markup=False, soft_wrap=True)
    return written(console)


def folded(words: str, width: int) -> str:
    """Words in lines of at most that width, broken after a comma, a slash or a dash where there is one.

    Example:
        >>> folded("diloco,period=20,lr=0.5", 16)
        'diloco,\\nperiod=20,lr=0.5'
    """
    lines = [""]
    for piece in re.findall(r"[^,/-]*[,/-]|[^,/-]+", words):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str], width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from thinwire.train.show import clock, size

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    for name in names:
        table.add_column(Text(folded(name, width)), justify="right", overflow="fold", min_width=COLUMN)

    def row(label: str, cells: Sequence[str]) -> None:
        table.add_row(label, *map(Text, cells))

    def times(ratio: float | None) -> str:
        return "–" if ratio is None else f"{ratio:,.1f}x"

    row("folder", [folded(each["folder"], width) for each in rows])
    if list(names) != [each["strategy"] for each in rows]:
        row("strategy", [folded(each["strategy"], width) for each in rows])
    row("validation loss", [f"{each['validation_nats_per_token']:.4f}" for each in rows])
    row("  to the first", [f"{each['gap']:+.2%}" for each in rows])
    row("bits a byte", ["–" if each["validation_bits_per_byte"] is None else f"{each['validation_bits_per_byte']:.4f}" for each in rows])
    row("sent by a rank", [size(each["sent_bytes_per_rank"]) for each in rows])
    row("  around it", [size(each["around_bytes_per_rank"]) for each in rows])
    row("fewer than dense", [times(each["ratio"]) for each in rows])
    row("  with all around", [times(each["ratio_all"]) for each in rows])
    row("tokens/s", [f"{each['tokens_per_s']:,.0f}" for each in rows])
    row("time", [clock(each["train_s"]) for each in rows])
    for label, key in (("  compute", "compute"), ("  wait for wire", "exposed"), ("  wait for input", "input")):
        row(label, [f"{each['time_shares'][key]:.1%}" for each in rows])
    for label, key in (("beside: encoding", "encode"), ("beside: wire", "wire")):
        row(label, [f"{each['time_shares'][key]:.1%}" for each in rows])
    return table
