"""`thinwire codecs`: what each codec makes of a tensor, in bytes, error and speed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from thinwire.errors import ConfigError
from thinwire.say import Say
from thinwire.words import columns

if TYPE_CHECKING:
    from thinwire.bench.codecs import Figures

ABOUT = """\
Codecs on a tensor: bits a value, error, and speed beside a copy of memory in the same run.

    thinwire codecs                                          the usual ones, on normal draws
    thinwire codecs --gradient grads.safetensors             on a gradient of yours; torch.save's files are read, too
    thinwire codecs --codec "uniform(4)" --codec "topk(64, per=4096) >> uniform(2, grid='rise')"
    thinwire codecs --plot codecs.svg                        error against bits, as a picture

Errors are of one tensor and one step: error feedback makes up for what is lost now in later steps, and does not show here.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `thinwire codecs`."""
    parser.add_argument("--gradient", type=Path, metavar="FILE", help=".safetensors, or what torch.save wrote; without it, random draws")
    parser.add_argument("--size", type=int, default=1 << 22, metavar="N", help="values to draw; default 4,194,304")
    parser.add_argument("--heavy", action="store_true", help="draw from Student's t with 3 degrees of freedom, not from the normal")
    parser.add_argument("--codec", action="append", metavar="CODE", help="as its repr; may be repeated; default: the usual ones")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw error against bits")


def run(options: argparse.Namespace, say: Say) -> int:
    """Measure each codec and tell."""
    if options.plot is not None and options.plot.suffix != ".svg":
        raise ConfigError(f"--plot {options.plot}: the picture is an SVG; give a name that ends in .svg")
    if not 16 <= options.size <= 1 << 30:
        raise ConfigError(f"--size {options.size}: 16 to 1,073,741,824 values")
    if options.gradient is not None and options.heavy:
        raise ConfigError("--heavy is for drawn values: leave it out, or --gradient")
    import thinwire.what  # noqa: F401  (its members are what is spelled)
    from thinwire.bench.codecs import USUAL, copy_gb_s, frontier, gaussian, measured, read
    from thinwire.spell import spelled

    codecs = [spelled("what", code) for code in options.codec or USUAL]
    tensors = read(options.gradient) if options.gradient is not None else gaussian(options.size, options.heavy)
    copy = copy_gb_s()
    rows = []
    for codec in codecs:
        rows.append(measured(codec, tensors, copy))
        say.note(rows[-1].codec)
    best = {row.codec for row in frontier(rows)}
    if options.plot is not None:
        _plot(rows, options.plot)
    values = sum(each.numel() for each in tensors.values())
    told = {"values": values, "copy_gb_s": copy, "codecs": [{**asdict(row), "frontier": row.codec in best} for row in rows]}
    say.result(told, _table(rows, best, values, copy))
    return 0


def _table(rows: list[Figures], best: set[str], values: int, copy: float) -> str:
    head = ("codec", "bits", "bytes", "error", "cosine", "encode GB/s", "of copy", "decode GB/s", "of copy")
    lines = [head]
    for row in sorted(rows, key=lambda each: -each.bits):
        decode = (
            ("–", "–") if row.decode_gb_s is None or row.decode_ratio is None else (f"{row.decode_gb_s:.2f}", f"{row.decode_ratio:.3f}")
        )
        lines.append(
            (
                f"{'* ' if row.codec in best else '  '}{row.codec}",
                *(f"{row.bits:.3f}", f"{row.nbytes:,}", f"{row.error:.4f}", f"{row.cosine:.4f}"),
                *(f"{row.encode_gb_s:.2f}", f"{row.encode_ratio:.3f}"),
                *decode,
            )
        )
    note = f"{values:,} float32 values; * no other has both fewer bits and less error; memory is copied at {copy:.1f} GB/s"
    return "\n".join([*columns(lines), "", note])


def _plot(rows: list[Figures], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"the picture needs matplotlib ({error}): pip install 'thinwire[train]'") from error
    from thinwire.bench.codecs import frontier

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    best = frontier(rows)
    axes.plot([row.bits for row in best], [row.error for row in best], color="0.75", zorder=1)
    axes.scatter([row.bits for row in rows], [row.error for row in rows], s=24, zorder=2)
    for row in rows:
        axes.annotate(row.codec, (row.bits, row.error), xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="bits a value (log scale)", ylabel="error: ||Q(x) - x|| / ||x||")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "thinwire"})
