"""How a run looks: one live line on a terminal, a line now and then elsewhere, and tables at the end.

Only rank 0 shows anything; the others have a `Show` that is silent.
"""

from __future__ import annotations

import math
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import thinwire
from thinwire.train.result import Moment, Result, Setting

LINE_EVERY = 50
REFRESH_S = 0.25
WIDTH = 100  # where there is no terminal to ask


class Show:
    """What a run tells as it goes; this one keeps it to itself."""

    def begin(self, setting: Setting) -> None: ...
    def step(self, moment: Moment) -> None: ...
    def validated(self, steps: int, loss: float) -> None: ...
    def end(self, result: Result) -> None: ...
    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""


class Lines(Show):
    """Plain lines, every 50 steps."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._next = LINE_EVERY

    def begin(self, setting: Setting) -> None:
        ranks = "1 rank" if setting.world == 1 else f"{setting.world} ranks"
        rows = setting.world * setting.batch
        size = f"{setting.parameters:,} parameters, {setting.steps} steps of {rows} × {setting.model.context} bytes"
        self.console.print(f"[bold]thinwire {thinwire.__version__}[/]: {ranks}, {size}")
        self.console.print(escape(f"{setting.strategy!r}"), style="dim")

    def step(self, moment: Moment) -> None:
        if moment.step >= self._next or moment.step == moment.steps:
            self._next = (moment.step // LINE_EVERY + 1) * LINE_EVERY
            self.console.print(Text("step ").append_text(summary(moment)), no_wrap=True)

    def validated(self, steps: int, loss: float) -> None:
        self.console.print(f"step {steps:>4}: validation loss {loss:.4f} nats/byte")

    def end(self, result: Result) -> None:
        for part in (figures(result), buckets(result), Panel(Text(printable(result.sample)), title="a sample", border_style="dim")):
            self.console.print(part)
        world = result.setting.world
        told = "nothing to compare: there is one rank" if world == 1 else f"all {world} ranks hold the same weights"
        self.console.print(f"sync.check() passed: {told}", style="bold green")


class LiveLine(Lines):
    """One line that is kept up to date, on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = -math.inf

    def begin(self, setting: Setting) -> None:
        super().begin(setting)
        self._live.start()

    def step(self, moment: Moment) -> None:
        now = time.monotonic()
        if now - self._shown < REFRESH_S and moment.step < moment.steps:
            return
        self._shown = now
        line = Table.grid(padding=(0, 2))
        if self.console.width >= WIDTH:
            line.add_column(width=16)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = (ProgressBar(moment.steps, moment.step, width=16),) if self.console.width >= WIDTH else ()
        line.add_row(*bar, summary(moment))
        self._live.update(line, refresh=True)

    def end(self, result: Result) -> None:
        self._live.stop()
        super().end(result)

    def close(self) -> None:
        self._live.stop()


def show_on(console: Console) -> Show:
    """What suits the console."""
    return LiveLine(console) if console.is_terminal else Lines(console)


def standard() -> Console:
    """Standard output: as wide as the terminal, or `WIDTH`."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def summary(moment: Moment) -> Text:
    """A moment in one line of fewer than 80 characters.

    Example:
        >>> from thinwire.engine import Report, Row
        >>> report = Report(2, 10, (Row("bucket 0", 250_000, 10, 5e5, exposed_s=0.1),), 0.0)
        >>> print(summary(Moment(10, 40, 2.5, 2.0, 20480, report)))
        10/40  loss 2.500  10,240 tokens/s  sent 0.50 MB, 20.0x fewer  wait 5%  0:06
    """
    report = moment.report
    step = f"{moment.step:>{len(str(moment.steps))}}/{moment.steps}"
    sent_mb = report.sent_bytes / 1e6
    sent = f"sent {sent_mb:.{2 if sent_mb < 100 else 0}f} MB, {report.ratio:.1f}x fewer" if sent_mb else "nothing sent"
    minutes, seconds = divmod(round(moment.left_s), 60)
    pace = f"{moment.tokens_per_s:,.0f} tokens/s"
    return Text("  ".join((step, f"loss {moment.loss:.3f}", pace, sent, f"wait {moment.waited:.0%}", f"{minutes}:{seconds:02}")))


def printable(text: str) -> str:
    """The text without what would drive a terminal, which a young model writes too.

    Example:
        >>> printable("The \\x1b[2Jend\\n")
        'The �[2Jend\\n'
    """
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def figures(result: Result) -> Table:
    """What came out, and what it cost."""
    end, report = result.end, result.end.report
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("validation loss", f"{result.nats:.4f}", f"nats/byte = {result.bits:.4f} bits/byte")
    table.add_row("speed", f"{end.tokens_per_s:,.0f}", f"tokens/s: {end.tokens:,} in {end.seconds:.1f} s, all ranks together")
    if result.setting.world == 1:
        table.add_row("sent", "0", "there is one rank")
        return table
    table.add_row("sent by the schedule", f"{report.sent_bytes / 1e6:,.3f}", "MB from this rank")
    table.add_row("sent around it", f"{report.setup_bytes / 1e6:,.3f}", "MB: start-up, validation, the check")
    table.add_row("dense fp32", f"{report.dense_bytes / 1e6:,.3f}", "MB would have been sent by the schedule")
    everything = report.dense_bytes / (report.sent_bytes + report.setup_bytes)
    ratio = f"{report.ratio:.1f}x" if report.sent_bytes else "–"
    table.add_row("fewer bytes", ratio, f"than dense fp32; {everything:.1f}x all told")
    table.add_row("exposed wait", f"{end.waited:.1%}", "of the time this rank did nothing but wait")
    return table


def buckets(result: Result) -> Table:
    """Each bucket's bytes and seconds."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("bucket", "values", "flights", "sent MB", "encode s", "wire s", "exposed s"):
        table.add_column(name, justify="left" if name == "bucket" else "right")
    for row in result.end.report.rows:
        seconds = (f"{spent:.2f}" for spent in (row.encode_s, row.wire_s, row.exposed_s))
        table.add_row(row.name, f"{row.numel:,}", f"{row.flights:,}", f"{row.sent_bytes / 1e6:,.3f}", *seconds)
    return table
