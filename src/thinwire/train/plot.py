"""Draw finished runs: the loss against steps, and against the megabytes that a rank has sent.

The bytes of each step are those that the schedule gave it: the strategy's ticks are played again,
dense flights at their closed form, all others at an even share of what was metered. The same runs
give the same file, byte for byte, whatever style the user's matplotlib has.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)  # Okabe and Ito's, for all eyes
DASHES = ("-", "--", ":", "-.")  # when the colours are used up
SMOOTH = 60  # a window of training loss is the run's length over this
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # matplotlib's own, so that it is the same everywhere
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a folder may be called $1$
    "svg.hashsalt": "thinwire",
}


def draw(runs: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> Path:
    """Draw runs into an SVG file, completely or not at all.

    Args:
        runs: from `Result.figures`, or from a `run.json`.
        names: what the legend calls them.
        path: the file; its folder exists.

    Returns:
        The path.

    Raises:
        ConfigError: matplotlib is not installed, the file cannot be written, or a run's strategy is
            none of this version's.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"the picture needs matplotlib ({error}): pip install 'thinwire[train]'"
        ) from error

    sent = [sent_megabytes(run) for run in runs]
    panels = 2 if any(any(each) for each in sent) else 1  # one rank has nobody to send to
    # Draw into a hidden file and rename it: a failure leaves the old picture.
    partial = path.with_name(f".{path.name}.partial")
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names in letters that the font lacks are boxes, and no warning.
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        for key, value in STYLE.items():
            matplotlib.rcParams[key] = value  # type: ignore[index, unused-ignore]  # its stubs list every key
        rows = -(-len(runs) // panels)
        figure = Figure(
            figsize=(5.6 * panels, 4.2 + 0.25 * rows), layout="constrained", facecolor="white"
        )
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        for run, megabytes, look in zip(runs, sent, _looks(), strict=False):
            _lines(axes[0], list(range(1, len(megabytes) + 1)), run, look)
            if panels == 2 and any(megabytes):
                _lines(axes[1], megabytes, run, look)
        _dress(axes, runs)
        # Empty lines for the legend, so that each run has one entry however many lines it drew.
        handles = [
            axes[0].plot([], [], marker="o", markersize=4, **look)[0]
            for _, look in zip(runs, _looks(), strict=False)
        ]
        figure.legend(handles, list(names), loc="outside lower center", ncols=panels, frameon=False)
        try:
            figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": "thinwire"})
            partial.replace(path)
        except OSError as error:
            raise ConfigError(
                f"the picture cannot be written to {str(path)!r}: {error.strerror}"
            ) from error
    return path


def sent_megabytes(run: Mapping[str, Any]) -> list[float]:
    """Return the megabytes that a rank has sent in the schedule by the end of each step, on average
    over ranks.

    Args:
        run: from `Result.figures`.

    Raises:
        ConfigError: its strategy is none of this version's.
    """
    launched = _launches(run)
    # 1. Known bytes: dense flights. 2. What was metered beyond them, in proportion to values sent.
    dense, metered = (
        [row["dense_bytes"] for row in launched],
        sum(run["result"]["sent_bytes"]) / run["world"],
    )
    weights = [row["weight"] for row in launched]
    nbytes_each = max(0.0, metered - sum(dense)) / (sum(weights) or 1)
    return [
        total / 1e6
        for total in itertools.accumulate(
            bytes_ + nbytes_each * weight for bytes_, weight in zip(dense, weights, strict=True)
        )
    ]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last `window` values at each of them; of fewer at the beginning.

    Example:
        >>> smoothed([4.0, 2.0, 0.0, 1.0], 2)
        [4.0, 3.0, 1.0, 0.5]
    """
    totals = [0.0, *itertools.accumulate(values)]
    return [
        (totals[end] - totals[max(0, end - window)]) / min(end, window)
        for end in range(1, len(totals))
    ]


def _launches(run: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return for each step the bytes of its dense flights, and the values in all others."""
    from thinwire.core import allreduce_nbytes
    from thinwire.errors import StrategyError
    from thinwire.strategy import Strategy

    try:
        strategy = Strategy.from_toml(run["strategy"])
    except StrategyError as error:
        raise ConfigError(f"a run's strategy is none of this version's: {error}") from error
    numels = [bucket["numel"] for bucket in run["buckets"]]
    # Steps of the schedule are batches on gradients, and optimiser steps on local steps.
    size = run["config"]["accumulate"] if strategy.on.clock == "step" else 1
    out = []
    for step in range(len(run["curve"]["train"])):
        dense = weight = 0.0
        if (step + 1) % size == 0:
            tick = strategy.when.tick(step // size, len(numels))
            values = sum(numels[bucket] for bucket in tick.launch)
            dense, weight = (
                (allreduce_nbytes(4 * values, run["world"]), 0.0) if tick.dense else (0.0, values)
            )
        out.append({"dense_bytes": dense, "weight": weight})
    return out


def _looks() -> Iterator[dict[str, Any]]:
    for dashes in itertools.cycle(DASHES):
        for colour in COLOURS:
            yield {"color": colour, "linestyle": dashes, "linewidth": 1.8}


def _lines(
    axes: Axes, positions: Sequence[float], run: Mapping[str, Any], look: dict[str, Any]
) -> None:
    """Draw the smoothed training loss (faint) and the validations, from the first step at which
    something had been sent."""
    train = run["curve"]["train"]
    loss = smoothed(train, max(1, len(train) // SMOOTH))
    # The last step of each plateau: between two sendings the megabytes stand still, and only the
    # loss at the end belongs to them.
    ends = [
        at
        for at in range(len(positions))
        if positions[at] > 0 and (at + 1 == len(positions) or positions[at + 1] > positions[at])
    ]
    axes.plot(
        [positions[at] for at in ends],
        [loss[at] for at in ends],
        **{**look, "linewidth": 1.0, "alpha": 0.45},
    )
    points = [
        (positions[each["step"] - 1], each["nats"])
        for each in run["curve"]["validation"]
        if each["step"]
    ]
    if points := [(x, y) for x, y in points if x > 0]:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, **look)


def _dress(axes: Sequence[Axes], runs: Sequence[Mapping[str, Any]]) -> None:
    """Set the axes, with limits that leave out the first steep fall, which would flatten the
    rest."""
    from matplotlib.ticker import LogLocator, NullFormatter

    # 1. Limits from the loss after a twentieth of the run, and the first validation.
    highs, lows = [], []
    for run in runs:
        train = run["curve"]["train"]
        loss = smoothed(train, max(1, len(train) // SMOOTH))
        points = [each["nats"] for each in run["curve"]["validation"]]
        highs.append(max([loss[len(loss) // 20], *points[:1]]))
        lows.append(min([*loss, *points]))
    low, high = min(lows), max(highs)
    margin = 0.05 * (high - low) or 0.1
    # 2. The left panel: loss against steps.
    axes[0].set_ylim(low - margin, high + margin)
    axes[0].set_xlim(left=0)
    axes[0].set_xlabel("steps")
    hidden = "a token" if all(run["objective"] == "causal" for run in runs) else "a hidden token"
    axes[0].set_ylabel(f"loss, nats {hidden}")
    axes[0].set_title(
        "validation (points) and training (faint)", fontsize=10, loc="left", color="#444444"
    )
    # 3. The right panel: the same against megabytes.
    for each in axes[1:]:
        each.set_xscale("log")
        low, high = each.get_xlim()
        each.xaxis.set_major_locator(
            LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0))
        )
        # matplotlib's own powers are mathematics, which is off.
        each.xaxis.set_major_formatter(lambda megabytes, _: f"{megabytes:,g}")
        each.xaxis.set_minor_formatter(NullFormatter())
        each.set_xlabel("MB sent by a rank (log scale)")
        each.set_title(
            "the same, for what it cost to send", fontsize=10, loc="left", color="#444444"
        )
