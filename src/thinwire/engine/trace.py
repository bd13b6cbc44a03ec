"""What happened when, on every rank: a file for Perfetto (ui.perfetto.dev) or chrome://tracing.

A rank is a process there, with a track `compute` (forward, backward, the waits within it,
optimiser) and one a lane (what codecs and routes compute, and what is on the wire, by bucket).
Clocks of ranks are set alike at the start, to within a round trip.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.core import Handle
from thinwire.errors import AttachError

if TYPE_CHECKING:
    from thinwire.engine.syncer import Syncer

COMPUTE = "compute"


class Trace:
    """The spans of one rank, in seconds of its own clock."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.spans: list[tuple[str, str, float, float, dict[str, Any]]] = []
        self._open: dict[str, float] = {}

    def add(self, track: str, name: str, begin: float, end: float, **told: Any) -> None:
        """A span that is over."""
        if end >= self.begun:
            self.spans.append((track, name, max(begin, self.begun), end, told))

    def opened(self, name: str) -> None:
        """Something of the compute track begins."""
        self._open[name] = time.perf_counter()

    def closed(self, name: str) -> None:
        """It ends, if it had begun."""
        begin = self._open.pop(name, None)
        if begin is not None:
            self.add(COMPUTE, name, begin, time.perf_counter())

    def flown(self, handle: Handle[Any], bucket: int, part: int, lane: int, step: int) -> None:
        """A flight that has landed."""
        for stage in handle.stages:
            told = {"step": step, "bucket": bucket, "slice": part} | (
                {"sent_bytes": stage.sent_bytes} if stage.what == "wire" else {}
            )
            self.add(
                f"lane {lane}", f"{stage.what} bucket {bucket}", stage.begin, stage.end, **told
            )

    def events(self, rank: int) -> list[dict[str, Any]]:
        """As Perfetto reads them, in microseconds since the start."""
        tracks = sorted(
            {track for track, *_ in self.spans} | {COMPUTE},
            key=lambda track: (track != COMPUTE, len(track), track),
        )
        numbers = {track: number for number, track in enumerate(tracks)}
        made: list[dict[str, Any]] = [
            {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
        ]
        made += [
            {"ph": "M", "pid": rank, "tid": tid, "name": "thread_name", "args": {"name": track}}
            for track, tid in numbers.items()
        ]
        for track, name, begin, end, told in self.spans:
            at = {"ts": round((begin - self.begun) * 1e6, 3), "dur": round((end - begin) * 1e6, 3)}
            made.append(
                {"ph": "X", "pid": rank, "tid": numbers[track], "name": name, **at, "args": told}
            )
        return made


@contextmanager
def recording(sync: Syncer, path: Path) -> Iterator[Trace]:
    """Record a syncer's steps inside the block, and write all ranks' to one file at its end: rank 0
    does.

    Where the block fails, each rank writes what it has to a file of its own, and asks nobody.
    """
    if sync.flights.trace is not None:
        raise AttachError(
            f"trace({str(path)!r}): another trace is being recorded; leave its block first"
        )
    if not path.parent.is_dir():
        raise AttachError(
            f"trace({str(path)!r}): there is no folder {str(path.parent)!r}; make it first"
        )
    rank = sync.driver.rank
    sync.all_gather(b"", "trace: the start")
    trace = sync.flights.trace = Trace(time.perf_counter())
    hooks = _hooks(sync, trace)
    try:
        yield trace
    except BaseException:
        _write(path.with_name(f"{path.stem}.rank{rank}{path.suffix}"), trace.events(rank))
        raise
    finally:
        for hook in hooks:
            hook.remove()
        sync.flights.trace = None
    told = sync.all_gather(json.dumps(trace.events(rank)).encode(), "trace: the end")
    if rank == 0:
        _write(path, [event for own in told for event in json.loads(own)])


def _hooks(sync: Syncer, trace: Trace) -> list[Any]:
    """What tells of forward passes and optimiser steps; the syncer tells of the end of a backward
    pass, and of waits."""

    def before(*_: Any) -> None:
        trace.opened("forward")

    def after(*_: Any) -> None:
        trace.closed("forward")
        if sync.model.training:
            trace.opened("backward")

    def stepping(*_: Any) -> None:
        trace.closed("backward")
        trace.opened("optimizer")

    def stepped(*_: Any) -> None:
        trace.closed("optimizer")

    model, optimizer = sync.model, sync.optimizer
    return [
        model.register_forward_pre_hook(before),
        model.register_forward_hook(after),
        optimizer.register_step_pre_hook(stepping),
        optimizer.register_step_post_hook(stepped),
    ]


def _write(path: Path, events: list[dict[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))
    beside.replace(path)
