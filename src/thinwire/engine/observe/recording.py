"""Record a trace on every rank, and write all ranks' spans to one file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinwire.engine.compiled import untraced
from thinwire.engine.flights import Flights
from thinwire.engine.observe.trace import Trace
from thinwire.engine.session import Session
from thinwire.errors import AttachError


@contextmanager
def recording(session: Session, flights: Flights, path: Path) -> Iterator[Trace]:
    """Record a syncer's steps inside the block, and write all ranks' to one file at its end: rank 0
    does.

    Where the block fails, each rank writes its own spans to a file of its own, without a message.
    """
    if flights.trace is not None:
        raise AttachError(
            f"trace({str(path)!r}): another trace is being recorded; leave its block first"
        )
    if not path.parent.is_dir():
        raise AttachError(
            f"trace({str(path)!r}): there is no folder {str(path.parent)!r}; make it first"
        )
    # 1. Begin together: an empty gather is a barrier, so clocks start within a round trip.
    rank = session.driver.rank
    session.all_gather(b"", "trace: the start")
    trace = flights.trace = Trace(time.perf_counter())
    hooks = _hooks(session, trace)
    # 2. Record. Where the block fails, other ranks may be gone: write without a message.
    try:
        yield trace
    except BaseException:
        _write(path.with_name(f"{path.stem}.rank{rank}{path.suffix}"), trace.events(rank))
        raise
    finally:
        for hook in hooks:
            hook.remove()
        flights.trace = None
    # 3. Gather the spans; rank 0 writes them all.
    by_rank = session.all_gather(json.dumps(trace.events(rank)).encode(), "trace: the end")
    if rank == 0:
        _write(path, [event for own in by_rank for event in json.loads(own)])


def _hooks(session: Session, trace: Trace) -> list[Any]:
    """Hook on to forward passes and optimiser steps; the engine itself adds the end of a backward
    pass, and waits."""

    @untraced
    def before(*_: Any) -> None:
        trace.opened("forward")

    # Without a loss to hook on to, backward is taken to begin where the forward pass ends.
    @untraced
    def after(*_: Any) -> None:
        trace.closed("forward")
        if session.model.training:
            trace.opened("backward")

    @untraced
    def stepping(*_: Any) -> None:
        trace.closed("backward")
        trace.opened("optimizer")

    @untraced
    def stepped(*_: Any) -> None:
        trace.closed("optimizer")

    model, optimizer = session.model, session.given_optimizer
    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    if optimizer is not None:
        hooks += [
            optimizer.register_step_pre_hook(stepping),
            optimizer.register_step_post_hook(stepped),
        ]
    return hooks


def _write(path: Path, events: list[dict[str, Any]]) -> None:
    # Write beside it and rename, so that a reader never sees half a file.
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))
    beside.replace(path)
