"""Record what happens when, on every rank, as a file for Perfetto (ui.perfetto.dev) or chrome://tracing.

A rank is a process there, with a track `compute` (forward, backward, the waits within it,
optimiser) and one a lane (what codecs and routes compute, and what is on the wire, by bucket).
Clocks of ranks are set alike at the start, to within a round trip.
"""

from __future__ import annotations

import time
from typing import Any

from thinwire.core import Handle

COMPUTE = "compute"


class Trace:
    """A recorder of one rank's spans, in seconds of its own clock."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.spans: list[tuple[str, str, float, float, dict[str, Any]]] = []
        self._open: dict[str, float] = {}

    def add(self, track: str, name: str, begin: float, end: float, **details: Any) -> None:
        """Add a span that is over."""
        if end >= self.begun:
            self.spans.append((track, name, max(begin, self.begun), end, details))

    def opened(self, name: str) -> None:
        """Begin a span of the compute track."""
        self._open[name] = time.perf_counter()

    def closed(self, name: str) -> None:
        """End a span of the compute track, if it had begun."""
        begin = self._open.pop(name, None)
        if begin is not None:
            self.add(COMPUTE, name, begin, time.perf_counter())

    def flown(self, handle: Handle[Any], bucket: int, part: int, lane: int, step: int) -> None:
        """Add the stages of a flight that has landed."""
        for stage in handle.stages:
            details = {"step": step, "bucket": bucket, "slice": part} | (
                {"sent_bytes": stage.sent_bytes} if stage.what == "wire" else {}
            )
            self.add(
                f"lane {lane}", f"{stage.what} bucket {bucket}", stage.begin, stage.end, **details
            )

    def events(self, rank: int) -> list[dict[str, Any]]:
        """Return the spans as Perfetto reads them, in microseconds since the start."""
        # 1. Number the tracks: compute first, then lanes by number (a longer name is a larger one).
        tracks = sorted(
            {track for track, *_ in self.spans} | {COMPUTE},
            key=lambda track: (track != COMPUTE, len(track), track),
        )
        numbers = {track: number for number, track in enumerate(tracks)}
        # 2. Metadata events ("M") name the process and its threads.
        made: list[dict[str, Any]] = [
            {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
        ]
        made += [
            {"ph": "M", "pid": rank, "tid": tid, "name": "thread_name", "args": {"name": track}}
            for track, tid in numbers.items()
        ]
        # 3. Complete events ("X") are the spans, begin and duration in microseconds.
        for track, name, begin, end, details in self.spans:
            at = {"ts": round((begin - self.begun) * 1e6, 3), "dur": round((end - begin) * 1e6, 3)}
            made.append(
                {"ph": "X", "pid": rank, "tid": numbers[track], "name": name, **at, "args": details}
            )
        return made
