"""Draw the pictures of a bench page: SVG that takes its colours from the page, light or dark.

matplotlib draws with stand-in colours, each of which becomes a CSS variable. Letters stay letters,
in the reader's own font.
"""

from __future__ import annotations

import io
import re
import statistics
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinwire.bench.looks import COLOURS, Look, clean, escape, sig
from thinwire.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "compute": "compute",
    "encode": "encode",
    "exposed": "wire, waited for",
    "input": "input",
    "untold": "not separated",
}
INKS = ("ink", "muted", "grid", "paper", *(f"c{n}" for n in range(COLOURS)), *PARTS)
STAND_INS = {ink: f"#0000{number:02x}" for number, ink in enumerate(INKS, start=1)}
LOG_FROM = 4.0  # x goes logarithmic where the lines' ends lie further apart than this
SIZE = (6.3, 4.0)  # inches of 72 units
STYLE: dict[str, Any] = {
    "font.family": [
        "DejaVu Sans"
    ],  # measured with matplotlib's own, which is wider than most; shown in the reader's
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.7,
    "grid.color": STAND_INS["grid"],
    "axes.edgecolor": STAND_INS["muted"],
    "axes.labelcolor": STAND_INS["ink"],
    "xtick.color": STAND_INS["muted"],
    "ytick.color": STAND_INS["muted"],
    "xtick.labelcolor": STAND_INS["ink"],
    "ytick.labelcolor": STAND_INS["ink"],
    "text.color": STAND_INS["ink"],
}


@dataclass(frozen=True)
class Line:
    """Hold a mean over seeds with its band.

    points: markers without a line; bare: a line without markers.
    """

    look: Look
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    points: bool = False
    bare: bool = False


def curves(
    lines: Sequence[Line],
    labels: tuple[str, str],
    unit: str,
    levels: Sequence[float] = (),
    chosen: int = 0,
) -> str:
    """Draw losses against steps, seconds or bytes.

    Args:
        lines: at least one, with at least one x above 0 in all.
        labels: the picture's title and description, for screen readers.
        unit: the label of x.
        levels: target losses, in the order in which the page offers them.
        chosen: the index of the one that is shown first.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    # 1. Lines, on a log scale where the largest x is far beyond the smallest.
    ends = [max(line.x) for line in lines if max(line.x, default=0) > 0]
    log = max(ends) > LOG_FROM * min(ends)
    with _figure(SIZE) as (figure, finished):
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line, log)
        low, high = _limits(lines)
        axes.set_ylim(low, high)
        # 2. A line for each target; the page shows one of them.
        for number, level in enumerate(levels):
            axes.axhline(
                level,
                color=STAND_INS["muted"],
                linewidth=1.1,
                linestyle=(0, (1, 2)),
                gid=f"t-{number}",
            )
            axes.annotate(
                f"target {level:.3f}",
                (0, level),
                (4, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=9,
                color=STAND_INS["muted"],
                gid=f"t-{number}",
                annotation_clip=True,
            )
        # 3. Axes. Begin where a curve comes into view, not at its first steep fall.
        if log:
            axes.set_xscale("log")
            seen = [
                x
                for line in lines
                for x, y in zip(line.x, line.y, strict=True)
                if x > 0 and y <= high
            ]
            left, right = axes.get_xlim()
            left = max(left, 0.7 * min(seen, default=left))
            axes.set_xlim(left, right)
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1.0,) if right / left > 300 else (1.0, 3.0))
            )
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlabel(unit + (" (log scale)" if log else ""))
        axes.set_ylabel("validation loss, nats a token")
    # Targets that are not chosen are hidden until the reader asks for them.
    return re.sub(
        r'class="t t(\d+)"',
        lambda each: each[0] if int(each[1]) == chosen else f'class="t t{each[1]} off"',
        finished(labels),
    )


def bars(
    rows: Sequence[tuple[str, Mapping[str, float], float]],
    labels: tuple[str, str],
    scale: float,
    unit: str,
) -> str:
    """Draw where a step's time went, in a bar for each contestant.

    A row is a name, seconds by part (see `PARTS`), and the mean step in seconds.

    A tick stands at the mean step; parts that run beside one another make a bar that is longer.
    """
    with _figure((SIZE[0], 0.9 + 0.4 * len(rows))) as (figure, finished):
        axes = figure.subplots()
        # Parts end to end in a bar; the tick at the mean step may stand before its end.
        for at, (_, parts, mean) in enumerate(rows):
            left = 0.0
            for part in PARTS:
                if (width := parts.get(part, 0.0) * scale) > 0:
                    axes.barh(
                        at,
                        width,
                        0.62,
                        left,
                        color=STAND_INS[part],
                        edgecolor=STAND_INS["paper"],
                        linewidth=0.8,
                    )
                    left += width
            axes.plot(
                [mean * scale] * 2, [at - 0.4, at + 0.4], color=STAND_INS["ink"], linewidth=1.6
            )
            tip = (max(left, mean * scale), at)
            axes.annotate(
                sig(mean * scale),
                tip,
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        # Long names wrap; the quickest stands at the top, as the rows are.
        axes.set_yticks(
            range(len(rows)),
            [
                "\n".join(textwrap.wrap(clean(name), 26, max_lines=2, placeholder=" …"))
                for name, _, _ in rows
            ],
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlabel(f"{unit} a step")
    return finished(labels)


def parts_legend() -> str:
    """Write the legend of the colours of `bars`."""
    items = (
        f'<li><span class="block" style="background: var(--{part})"></span>{escape(words)}</li>'
        for part, words in PARTS.items()
    )
    return (
        f'<ul class="legend parts">{"".join(items)}<li><span class="tick"></span>mean '
        "step</li></ul>"
    )


def _draw(axes: Axes, line: Line, log: bool) -> None:
    # Of validations between which nothing was sent, the last one counts.
    last = len(line.x) - 1
    there = [
        at
        for at, x in enumerate(line.x)
        if (x > 0 or not log) and (at == last or line.x[at + 1] > x)
    ]
    x, y = [line.x[at] for at in there], [line.y[at] for at in there]
    ink, gid = STAND_INS[line.look.ink], f"s-{line.look.number}"
    # 1. The band from the least to the greatest seed.
    if line.low and any(high > low for low, high in zip(line.low, line.high, strict=True)):
        axes.fill_between(
            x,
            [line.low[at] for at in there],
            [line.high[at] for at in there],
            color=ink,
            alpha=0.16,
            linewidth=0,
            gid=gid,
        )
    # 2. The mean, with a few markers, shifted by number so that lines on each other differ.
    every = 1 if line.points else max(1, len(x) // 7)
    axes.plot(
        x,
        y,
        color=ink,
        linewidth=0 if line.points else 1.9,
        linestyle=(0, (4.5, 1.8)) if line.look.rival else "-",
        marker="" if line.bare else line.look.marker,
        markersize=5.5,
        markevery=(line.look.number % every, every) if len(x) > every else None,
        markerfacecolor=STAND_INS["paper"] if line.look.rival else ink,
        markeredgewidth=1.2,
        zorder=2.5 if line.look.rival else 3,
        gid=gid,
    )


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    """Return limits of y without the first steep fall, which would flatten all that differs."""
    low = min(min(line.low or line.y) for line in lines)
    early = statistics.median(
        line.y[min(len(line.y) - 1, max(1, len(line.y) // 8))] for line in lines
    )
    high = max(early, *(line.y[-1] + 0.1 * (line.y[-1] - low) for line in lines))
    room = 0.05 * (high - low) or 0.1
    return low - room, high + room


def need_matplotlib() -> None:
    """Refuse to draw without it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the page needs matplotlib ({error}): pip install 'thinwire[train]'"
        ) from error


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Callable[[tuple[str, str]], str]]]:
    """Yield a figure in this module's style, and a function that returns its SVG once drawn."""
    need_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn: list[str] = []

    def finished(labels: tuple[str, str]) -> str:
        return _inline(drawn[0], *labels)

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The reader's font may well have them.
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        for key, value in STYLE.items():
            matplotlib.rcParams[key] = value  # type: ignore[index, unused-ignore]  # its stubs list every key
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        yield figure, finished
        for axes in figure.axes:
            axes.patch.set_visible(False)
        # The same salt for the same size: a page is the same, byte for byte, when made again.
        matplotlib.rcParams["svg.hashsalt"] = f"{size}"
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        drawn.append(out.getvalue())


def _inline(svg: str, title: str, about: str) -> str:
    """Make matplotlib's file a part of a page.

    It loses declarations, addresses, and ids that a second picture would have too.
    """
    # 1. Cut the file's head; of it only the viewBox is used.
    body = svg[svg.index("<svg") :]
    head, body = body[: body.index(">") + 1], body[body.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]+)"', head)
    # 2. Ids of our own become classes, as a page has several pictures.
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r' id="s-(\d+)"', r' class="s c\1"', body)
    body = re.sub(r' id="t-(\d+)"', r' class="t t\1"', body)
    # 3. Ids that something refers to get a salt of this picture; all others go.
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda each: each[0] if each[1] in used else "", body)
    salt = f"p{zlib.crc32((title + about + body).encode('utf-8', 'replace')):x}-"
    body = re.sub(r'( id="|href="#|url\(#)([\w-]+)', rf"\1{salt}\2", body)
    # 4. Colours become the page's variables.
    body = re.sub(r'style="[^"]*"', _dressed, body)
    body = re.sub(r"\n\s*", "\n", body)
    ids = f"{salt}title", f"{salt}about"
    return (
        f'<svg role="img" viewBox="{box[1] if box else ""}" aria-labelledby="{ids[0]}" '
        f'aria-describedby="{ids[1]}">'
        f'<title id="{ids[0]}">{escape(title)}</title><desc '
        f'id="{ids[1]}">{escape(about)}</desc>{body.strip()}'
    )


def _dressed(style: re.Match[str]) -> str:
    """Return a style with the page's colours and the reader's font."""
    dressed = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", r"font-size: \2px", style[0])
    for ink, stand_in in STAND_INS.items():
        dressed = dressed.replace(stand_in, f"var(--{ink})")
    return dressed
