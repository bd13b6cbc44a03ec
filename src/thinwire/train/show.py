"""Show a run: one live line on a terminal or a few lines elsewhere, a table at the end, and
TensorBoard events.

Progress goes to standard error, what came of it to standard output. Only rank 0 shows anything.
"""

from __future__ import annotations

import io
import math
import time
from contextlib import suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from thinwire.text.output import CommandOutput, rank
from thinwire.train.folder import EVENTS, RunFolder
from thinwire.train.result import Progress, Result, Setting
from thinwire.version import __version__

REFRESH_S = 0.25
EVENT_EVERY = 10
WIDTH = 100  # where there is no terminal to ask


class Show:
    """Receive the events of a run; this class shows nothing."""

    def begin(self, setting: Setting, done: int) -> None: ...
    def step(self, progress: Progress) -> None: ...
    def validated(self, steps: int, loss: float) -> None: ...
    def close(self) -> None:
        """Restore the terminal, also after an error."""


class Lines(Show):
    """Print a few plain lines: the setting, and each validation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last: Progress | None = None

    def begin(self, setting: Setting, done: int) -> None:
        config = setting.config
        rows = setting.world * config.batch
        size = (
            f"{config.model}, {setting.parameters:,} parameters, {setting.steps:,} steps of "
            f"{rows} × {config.context} tokens"
        )
        self.console.print(
            f"[bold]thinwire {__version__}[/]: {setting.ranks}, {escape(size)}, "
            f"{setting.objective}, {setting.precision}"
        )
        self.console.print(escape(f"{setting.strategy!r}"), style="dim")
        if setting.world > 1:
            self.console.print(
                f"ranks compare their weights {_checks(setting)} (--check-every)", style="dim"
            )

    def step(self, progress: Progress) -> None:
        self._last = progress

    def validated(self, steps: int, loss: float) -> None:
        values = [f"step {steps}", f"validation {loss:.4f} nats/token"]
        if self._last is not None:
            values += [
                f"training {self._last.loss:.3f}",
                f"{self._last.tokens_per_s:,.0f} tokens/s",
                fewer(self._last),
            ]
        self.console.print(Text("  ".join(values)), no_wrap=True, overflow="ignore", crop=False)


class LiveLine(Lines):
    """Keep one line up to date, on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = -math.inf

    def begin(self, setting: Setting, done: int) -> None:
        super().begin(setting, done)
        self._live.start()

    def step(self, progress: Progress) -> None:
        super().step(progress)
        now = time.monotonic()
        if now - self._shown < REFRESH_S and progress.step < progress.steps:
            return
        self._shown = now
        wide = self.console.width >= WIDTH + 40
        line = Table.grid(padding=(0, 2))
        if wide:
            line.add_column(width=16)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(
            *((ProgressBar(progress.steps, progress.step, width=16),) if wide else ()),
            summary(progress),
        )
        self._live.update(line, refresh=True)

    def close(self) -> None:
        self._live.stop()


class Events(Show):
    """Write TensorBoard's event files."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, setting: Setting, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(self._folder.path / EVENTS), purge_step=done if done else None
        )
        self._writer.add_text("strategy", f"    {setting.strategy!r}")

    def step(self, progress: Progress) -> None:
        if progress.step % EVENT_EVERY and progress.step != progress.steps:
            return
        report = progress.report
        values = {
            "loss/train": progress.loss,
            "speed/tokens_per_s": progress.tokens_per_s,
            "bytes/sent": report.sent_bytes,
        }
        values |= {f"time/{name}": fraction for name, fraction in progress.time_fractions.items()}
        if report.sent_bytes:
            values["bytes/times_fewer_than_dense"] = report.ratio
        self._add(values, progress.step)

    def validated(self, steps: int, loss: float) -> None:
        self._add({"loss/validation": loss}, steps, flush=True)

    def _add(self, values: dict[str, float], step: int, flush: bool = False) -> None:
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            if flush:
                self._writer.flush()
        except OSError as error:  # a full disk must not end a training
            self._writer = None
            CommandOutput("thinwire train", as_json=False).note(
                f"TensorBoard's events are not written any more: {error.strerror or error}"
            )

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


class Both(Show):
    """Pass events on to several others."""

    def __init__(self, *shows: Show) -> None:
        self._shows = shows

    def begin(self, setting: Setting, done: int) -> None:
        for show in self._shows:
            show.begin(setting, done)

    def step(self, progress: Progress) -> None:
        for show in self._shows:
            show.step(progress)

    def validated(self, steps: int, loss: float) -> None:
        for show in self._shows:
            show.validated(steps, loss)

    def close(self) -> None:
        for show in self._shows:
            show.close()


def show_on(folder: RunFolder) -> Show:
    """Return what suits this rank and its standard error."""
    if rank():
        return Show()
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=WIDTH)
    return Both(LiveLine(console) if console.is_terminal else Lines(console), Events(folder))


def summary(progress: Progress) -> Text:
    """Return the progress of a run in one line.

    Example:
        >>> from thinwire.engine import Report, Row
        >>> row = Row("bucket 0", 250_000, 10, 5e5, encode_s=0.04, exposed_s=0.1)
        >>> report = Report(2, 10, (row,), 0.0)
        >>> print(summary(Progress(10, 40, 2.5, 2.0, 20480, report)))
        10/40  loss 2.500  10,240 tokens/s  50.0 kB/step, 20.0x fewer
        compute 95% encode 2% wire 5% input 0%  0:06 left
    """
    time_fractions = progress.time_fractions
    step = f"{progress.step:>{len(str(progress.steps))}}/{progress.steps}"
    spent = (
        f"compute {time_fractions['compute']:.0%} encode {time_fractions['encode']:.0%} wire "
        f"{time_fractions['exposed']:.0%} input {time_fractions['input']:.0%}"
    )
    return Text(
        "  ".join(
            (
                step,
                f"loss {progress.loss:.3f}",
                f"{progress.tokens_per_s:,.0f} tokens/s",
                fewer(progress),
                spent,
                f"{clock(progress.remaining_s)} left",
            )
        )
    )


def fewer(progress: Progress) -> str:
    """Return the bytes that this rank sent for each step, and how many times fewer that is than
    dense float32."""
    report = progress.report
    if not report.sent_bytes:
        return "nothing sent"
    return (
        f"{size(report.sent_bytes / max(progress.step, 1))}/step, "
        f"{progress.dense_bytes / report.sent_bytes:.1f}x fewer"
    )


def size(nbytes: float) -> str:
    """Format bytes in a suitable unit.

    Example:
        >>> size(1_500_000), size(50_000), size(12)
        ('1.50 MB', '50.0 kB', '12 B')
    """
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= limit:
            return (
                f"{nbytes / limit:.3g} {unit}"
                if nbytes >= 100 * limit
                else f"{nbytes / limit:.{1 if unit == 'kB' else 2}f} {unit}"
            )
    return f"{nbytes:.0f} B"


def clock(seconds: float) -> str:
    """Format seconds as minutes, or as hours.

    Example:
        >>> clock(6), clock(3725)
        ('0:06', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def printable(text: str) -> str:
    """Return the text without characters that control a terminal, which an untrained model may
    write.

    Example:
        >>> printable("The \\x1b[2Jend\\n")
        'The �[2Jend\\n'
    """
    return "".join(
        character if character.isprintable() or character == "\n" else "�" for character in text
    )


def figures(result: Result, width: int | None = None) -> str:
    """Return the results, a sample and the paths of a run as text for standard output."""
    console = Console(file=io.StringIO(), highlight=False, width=width or min(Console().width, 120))
    sample = (
        (Panel(Text(printable(result.sample)), title="a sample", border_style="dim"),)
        if result.sample
        else ()
    )
    console.print(Group(_table(result), *sample, _path_table(result)))
    return written(console)


def written(console: Console) -> str:
    """Return what was printed on a console that writes into a string, without blanks at line
    ends."""
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _checks(setting: Setting) -> str:
    """Return how often ranks compare their weights, as far as it is known at the start."""
    every = setting.config.check_every
    if every == "0" or not setting.strategy.compares:
        return (
            "at the end only"
            if setting.strategy.compares
            else "never, as by this strategy they differ"
        )
    return (
        "as often as costs less than 0.5 % of the time"
        if every == "auto"
        else f"every {every} steps"
    )


def _table(result: Result) -> Table:
    # 1. Quality, speed and where the time went.
    setting, end = result.setting, result.end
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "validation loss",
        f"{result.nats:.4f}",
        "nats a token" + ("" if setting.objective == "causal" else " that was hidden"),
    )
    if result.bits_per_byte is not None:
        table.add_row("", f"{result.bits_per_byte:.4f}", "bits a byte of text")
    table.add_row(
        "speed",
        f"{end.tokens_per_s:,.0f}",
        f"tokens/s, all ranks together: {end.tokens:,} tokens in {clock(end.seconds)}",
    )
    time_fractions = end.time_fractions
    values = (
        f"waiting for the wire {time_fractions['exposed']:.1%}, for input "
        f"{time_fractions['input']:.1%}; beside "
        f"it: encoding {time_fractions['encode']:.1%}"
    )
    table.add_row("compute", f"{time_fractions['compute']:.1%}", f"of the time; {values}")
    # 2. Bytes; a single rank has sent none.
    if setting.world == 1:
        table.add_row("sent", "0", "there is one rank")
        return table
    sent, around = result.sent_bytes, result.around_bytes
    each = size(sent[0]) if max(sent) == min(sent) else f"{size(min(sent))} to {size(max(sent))}"
    table.add_row("sent by each rank", each, "in the schedule")
    for name, parts in (
        ("  beside it", result.most_around(once=False)),
        ("  once, at start", result.most_around(once=True)),
    ):
        if parts:
            table.add_row(
                name,
                size(sum(parts.values())),
                ", ".join(f"{cause} {size(nbytes)}" for cause, nbytes in parts.items()),
            )
    # 3. Ratios to dense float32 after every batch.
    table.add_row(
        "sent in all",
        size(sum(sent) + sum(around)),
        f"dense fp32 after every batch: {size(result.dense_bytes)}",
    )
    table.add_row("fewer bytes", _times(result.ratio), "than dense fp32, in the schedule")
    table.add_row("", _times(result.ratio_running), "with what is beside it")
    table.add_row(
        "", _times(result.ratio_all), "with the start, too, which weighs less the longer a run is"
    )
    if setting.strategy.compares:
        table.add_row("sync.check()", "passed", f"all {setting.holders} hold the same weights")
        if end.report.checks:
            table.add_row("", "", end.report.checks)
    else:
        table.add_row(
            "ranks", "differ", "as the strategy has it; validated and saved is their mean"
        )
    return table


def _times(ratio: float | None) -> str:
    return f"{ratio:.1f}x" if ratio else "–"


def _path_table(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, path in result.paths.items():
        table.add_row(Text(name, style="dim"), Text(path, overflow="fold"))
    return table
