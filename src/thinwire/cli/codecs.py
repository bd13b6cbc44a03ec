"""Run `thinwire codecs`: measure bytes, error and speed of each codec on a tensor."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import ConfigError
from thinwire.text.output import CommandOutput
from thinwire.text.words import columns

if TYPE_CHECKING:
    from torch import Tensor

    from thinwire.planner.codecs import Figures, P
    from thinwire.planner.tune import Choice

ABOUT = """\
Measure codecs on a tensor: bits per value, error, and speed beside a copy of memory.

    thinwire codecs                                   the usual codecs, on normal random values
    thinwire codecs --gradient grads.safetensors      on your gradient; also a file of torch.save
    thinwire codecs --codec "uniform(4)" --codec "topk(64, per=4096) >> uniform(2, grid='rise')"
    thinwire codecs --plot codecs.svg                 draw error against bits
    thinwire codecs tune grads.safetensors --bits 3   find the best codec within 3 bits per value

Errors are those of one tensor and one step. Error feedback, which adds the lost part to later
steps, does not show here.
"""
_NAMED = 16  # codecs that have room for a name each in a picture; of more, the frontier is numbered


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire codecs`."""
    parser.add_argument(
        "--gradient",
        type=Path,
        metavar="FILE",
        help=".safetensors, or what torch.save wrote; without it, random draws",
    )
    parser.add_argument("--size", type=int, metavar="N", help="values to draw; default 4,194,304")
    parser.add_argument(
        "--heavy",
        action="store_true",
        help="draw from Student's t with 3 degrees of freedom, not from the normal",
    )
    parser.add_argument(
        "--codec",
        action="append",
        metavar="CODE",
        help="as its repr; may be repeated; default: the usual ones",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw error against bits")
    actions = parser.add_subparsers(dest="action", metavar="tune")
    tune = actions.add_parser(
        "tune",
        help="error against bytes for a saved gradient, and the best codec that fits",
        allow_abbrev=False,
    )
    tune.add_argument(
        "file", type=Path, metavar="FILE", help=".safetensors, or what torch.save wrote"
    )
    tune.add_argument(
        "--bits", type=float, metavar="B", help="bits a value that the codec may have"
    )
    tune.add_argument(
        "--bytes", type=int, dest="nbytes", metavar="N", help="or bytes for all of the file"
    )
    # These flags may stand before `tune`, too: a default here would overwrite what was given there.
    absent = argparse.SUPPRESS
    tune.add_argument(
        "--codec",
        action="append",
        metavar="CODE",
        default=absent,
        help="may be repeated; default: a list of fifty-five",
    )
    tune.add_argument(
        "--plot", type=Path, metavar="FILE.svg", default=absent, help="draw error against bits"
    )
    tune.add_argument("--json", action="store_true", dest="as_json", default=absent, help=absent)


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Measure each codec and print a table."""
    # 1. Refuse before torch is loaded.
    if options.plot is not None and options.plot.suffix != ".svg":
        raise ConfigError(
            f"--plot {options.plot}: the picture is an SVG; give a name that ends in .svg"
        )
    if options.action == "tune":
        return _tune(options, output)
    size = 1 << 22 if options.size is None else options.size
    if not 16 <= size <= 1 << 30:
        raise ConfigError(f"--size {size}: 16 to 1,073,741,824 values")
    if options.gradient is not None and options.heavy:
        raise ConfigError("--heavy is for drawn values: leave it out, or --gradient")
    import thinwire.what  # noqa: F401  (its members are what is spelled)
    from thinwire.planner.codecs import USUAL, copy_gb_s, frontier, gaussian, measured, read
    from thinwire.strategy.reading import spelled

    # 2. All codecs are read before the first one is measured.
    codecs = [spelled("what", code) for code in options.codec or USUAL]
    tensors = (
        read(options.gradient) if options.gradient is not None else gaussian(size, options.heavy)
    )
    # 3. The copy is measured in the same run, so that ratios hold on any machine.
    copy = copy_gb_s()
    rows = []
    for codec in codecs:
        rows.append(measured(codec, tensors, copy))
        output.note(rows[-1].codec)
    best = {row.codec for row in frontier(rows)}
    if options.plot is not None:
        _plot(rows, options.plot)
    values = sum(each.numel() for each in tensors.values())
    report = {
        "values": values,
        "copy_gb_s": copy,
        "codecs": [{**asdict(row), "frontier": row.codec in best} for row in rows],
    }
    output.result(report, _table(rows, best, values, copy))
    return 0


def _table(rows: list[Figures], best: set[str], values: int, copy: float) -> str:
    head = (
        "codec",
        "bits",
        "bytes",
        "error",
        "cosine",
        "encode GB/s",
        "of copy",
        "decode GB/s",
        "of copy",
    )
    lines = [head]
    for row in sorted(rows, key=lambda each: -each.bits):
        decode = (
            ("–", "–")
            if row.decode_gb_s is None or row.decode_ratio is None
            else (f"{row.decode_gb_s:.2f}", f"{row.decode_ratio:.3f}")
        )
        lines.append(
            (
                f"{'* ' if row.codec in best else '  '}{row.codec}",
                *(f"{row.bits:.3f}", f"{row.nbytes:,}", f"{row.error:.4f}", f"{row.cosine:.4f}"),
                *(f"{row.encode_gb_s:.2f}", f"{row.encode_ratio:.3f}"),
                *decode,
            )
        )
    note = (
        f"{values:,} float32 values; * no other has both fewer bits and less error; memory is "
        f"copied at {copy:.1f} GB/s"
    )
    return "\n".join([*columns(lines), "", note])


def _tune(options: argparse.Namespace, output: CommandOutput) -> int:
    if options.gradient is not None or options.heavy or options.size is not None:
        raise ConfigError(
            "tune reads the FILE that it is given: leave out --gradient, --size and --heavy"
        )
    import thinwire.what  # noqa: F401  (its members are what is spelled)
    from thinwire.planner.codecs import frontier, laid, read
    from thinwire.planner.tune import CHOICES, best_within, filling, limit_in_bytes, tried

    tensors = read(options.file)
    values = sum(each.numel() for each in tensors.values())
    limit_nbytes = limit_in_bytes(options.bits, options.nbytes, values)
    codes = options.codec or [
        *CHOICES,
        *(filling(limit_nbytes, laid(tensors)[1]) if limit_nbytes is not None else ()),
    ]
    # A note for each as it is done: large files take minutes.
    rows: list[Choice] = []
    for row in tried(codes, tensors):
        rows.append(row)
        output.note(row.codec)
    best = frontier(rows)
    if options.plot is not None:
        _plot(rows, options.plot)
    pick = best_within(rows, limit_nbytes) if limit_nbytes is not None else None
    report = {
        "values": values,
        "room_bytes": limit_nbytes,
        "best": None if pick is None else asdict(pick) | {"line": _line(pick)},
        "codecs": [{**asdict(row), "frontier": row in best} for row in rows],
    }
    lines = [
        *_choices(rows, best, values),
        *_widths(frontier([row for row in rows if row.widths is not None]), tensors),
    ]
    if pick is not None:
        lines += [
            "",
            f"best within {limit_nbytes:,} bytes: {pick.bits:.3f} bits a value, error "
            f"{pick.error:.4f}",
            "",
            f"    {_line(pick)}",
        ]
        if pick.drops:
            lines += [
                "",
                (
                    "It leaves entries out, which are lost unless they are sent later: "
                    "what=feedback(…)"
                ),
            ]
    output.result(report, "\n".join(lines))
    return 0


def _line(pick: Choice) -> str:
    return f"what={pick.codec}"


def _choices(rows: list[Choice], best: list[Choice], values: int) -> list[str]:
    lines = [("codec", "bits", "bytes", "error")]
    for row in sorted(rows, key=lambda each: (each.nbytes, each.error)):
        lines.append(
            (
                f"{'* ' if row in best else '  '}{row.codec}",
                f"{row.bits:.3f}",
                f"{row.nbytes:,}",
                f"{row.error:.4f}",
            )
        )
    return [
        *columns(lines),
        "",
        f"{values:,} float32 values; * no other has both fewer bits and less error",
    ]


def _widths(rows: list[Choice], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the mean width that each of some budgets gives each tensor, under the bits that it has
    in the table above."""
    report = [(row, row.widths) for row in rows if row.widths is not None]
    if not report:
        return []
    lines = [("bits of each tensor at", "values", *(f"{row.bits:.3f}" for row, _ in report))]
    lines += [
        (name, f"{each.numel():,}", *(f"{widths[name]:.2f}" for _, widths in report))
        for name, each in tensors.items()
    ]
    return ["", *columns(lines)]


def _plot(rows: Sequence[P], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"the picture needs matplotlib ({error}): pip install 'thinwire[train]'"
        ) from error
    from thinwire.planner.codecs import frontier

    # With many codecs points carry numbers, and a legend has the names of the best.
    many = len(rows) > _NAMED
    figure = Figure(figsize=(11 if many else 8, 5), layout="constrained")
    axes = figure.add_subplot()
    best = frontier(rows)
    axes.plot([row.bits for row in best], [row.error for row in best], color="0.75", zorder=1)
    axes.scatter([row.bits for row in rows], [row.error for row in rows], s=24, zorder=2)
    for i, row in enumerate(best if many else rows, 1):
        near: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(str(i) if many else row.codec, (row.bits, row.error), **near)
        if many:
            axes.plot([], [], " ", label=f"{i}  {row.codec}")
    if many:
        figure.legend(
            loc="outside right upper", fontsize=7, handlelength=0, handletextpad=0, frameon=False
        )
    axes.set_yscale("log" if all(row.error > 0 for row in rows) else "linear")
    axes.set(xscale="log", xlabel="bits a value (log scale)", ylabel="error: ||Q(x) - x|| / ||x||")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "thinwire"})
