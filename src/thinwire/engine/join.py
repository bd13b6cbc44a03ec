"""`join`: take part in rounds that close with a quorum; what `attach` is where all ranks stay together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from thinwire.core import LOCAL_NETWORK, Codec, Flight, Link, Part, Ranks, Seat, Spec
from thinwire.engine.board import Board
from thinwire.engine.buckets import build, plan
from thinwire.engine.flights import Flights
from thinwire.engine.meter import Meter, Row
from thinwire.engine.options import Options, facts, problems
from thinwire.engine.quorum import QuorumSyncer
from thinwire.engine.weights import Weights
from thinwire.errors import AttachError, DisagreementError, FlightError, ThinwireError
from thinwire.how import gather
from thinwire.on import deltas
from thinwire.strategy import Strategy
from thinwire.when import every


def join(  # noqa: PLR0913  (options by name; each is one thing a user may want)
    model: nn.Module,
    optimizer: Optimizer,
    strategy: Strategy,
    *,
    store: Any,
    rank: int,
    world: int,
    quorum: int,
    grace_s: float = 10.0,
    weight: float = 1.0,
    scaler: Any = None,
    bucket_bytes: int = 25 << 20,
    slice_bytes: int | None = None,
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
) -> QuorumSyncer:
    """Take part in rounds that close with a quorum; at the start, or later, from the newest anchor. No process group is needed.

    Args:
        model: as in `attach`. Whoever joins first gives all others its parameters and buffers.
        optimizer: the one that updates it; a rank that comes later begins with a fresh one.
        strategy: `every(H)`, any codec that speaks once, `gather()`, `deltas(…)` without alpha and eager: DiLoCo, SparseLoCo and the like.
        store: of `torch.distributed`, such as a `TCPStore`, the same for all. The process that holds it must outlive the run; every
            contribution goes there and from there to every rank.
        rank: this rank's number, from 0, used by one process at a time. One that is started again may have its old number.
        world: how many ranks there are as a rule; the first round expects ranks 0 to world - 1.
        quorum: how many ranks close a round, 1 to world.
        grace_s: how long a round that has its quorum waits for the others who are expected.
        weight: this rank's weight in means, at least 0: its tokens in a round, say; `sync.weigh` changes it.
        scaler: as in `attach`.
        bucket_bytes: as in `attach`.
        slice_bytes: as in `attach`.
        timeout: how long a round waits for its quorum, and whoever comes for an anchor, which a rank puts up at the end of a round: give
            it more than the longest round takes.
        seed: of every random draw; the same on every rank.

    Raises:
        AttachError: a strategy that rounds cannot have, options out of range, a model that cannot be attached.
        DisagreementError: the run has another strategy, model or options.
        QuorumError: nobody serves the newest anchor in time; at a step, too few for a quorum came.
        StrategyError: a parameter that the outer optimiser refuses, or `by_rank` without a codec for this rank.
        FlightError: the store does not answer; at a step, a delta that is not finite, or a round of which all weigh 0.

    Example:
        >>> import torch.distributed as dist
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> strategy = Strategy(every(2), how=gather(), on=deltas())
        >>> with join(model, optimizer, strategy, store=dist.HashStore(), rank=0, world=1, quorum=1) as sync:
        ...     while sync.step < 4:
        ...         model(torch.ones(1, 4)).sum().backward()
        ...         optimizer.step()
        ...     sync.version
        2
    """
    options = Options(bucket_bytes, slice_bytes, 1, "backward", "local", scaler, seed)
    found = problems(model, optimizer, strategy, options)
    found += _unfit(strategy, rank, world, quorum, grace_s, weight) if isinstance(strategy, Strategy) else []
    if options.slice_bytes == "auto":
        found.append("slice_bytes='auto': no link is measured between ranks that meet at a store; say how many bytes")
    if found:
        raise AttachError("cannot join:\n" + "\n".join(found))
    board = Board(store)
    mine = facts(model, strategy, options) | {"world": world, "quorum": quorum, "grace_s": grace_s}
    theirs = json.loads(board.claim("facts", json.dumps(mine)))
    for name, here in mine.items():
        if theirs.get(name) != here:
            raise DisagreementError(
                f"cannot join: {name} differs (the run: {theirs.get(name)!r}; here: {here!r}). Give every rank the same"
            )
    driver, meter = _Alone(rank, world, lambda: board.set(f"left/{rank}", "")), Meter(world)
    built = build(plan(model, bucket_bytes, strategy.when, wide=True), strategy, strategy.how, driver, 1, slice_bytes, seed)
    meter.rows.extend(Row(f"bucket {bucket.index}", bucket.spec.numel) for bucket in built)
    flights = Flights(strategy, strategy.how, strategy.how, driver, built, meter, seed)
    weights = Weights(driver, meter, strategy.how, built[0].device)
    sync = QuorumSyncer(model, optimizer, flights, weights, options)
    try:
        sync.enter(board, quorum, grace_s, timeout.total_seconds())
        sync.weigh(weight)
    except BaseException:
        sync.close()
        raise
    return sync


def _unfit(strategy: Strategy, rank: int, world: int, quorum: int, grace_s: float, weight: float) -> list[str]:
    """Why this cannot be had in rounds with a quorum."""
    found = []
    on, what = strategy.on, strategy.what
    if not isinstance(strategy.when, every) or strategy.when.phase is not None:
        found.append(f"{strategy.when!r}: a round is so many local steps; take every(n), without a phase")
    if not isinstance(strategy.how, gather):
        found.append(f"{strategy.how!r}: each contribution goes to whoever is there; take gather()")
    if not isinstance(on, deltas) or on.alpha or on.eager:
        found.append(f"{on!r}: a round goes from an anchor to the next; take deltas(outer=…), without alpha and eager")
    if what.opener is None or "replicated" in _kinds(what):
        found.append(f"{what!r}: it must speak once and keep nothing that all ranks hold equal, as not all hear the same rounds in time")
    if not isinstance(world, int) or world < 1 or not isinstance(quorum, int) or not 1 <= quorum <= world:
        found.append(f"quorum={quorum!r} of world={world!r}: a quorum is 1 to world ranks, and a world at least 1")
    if not isinstance(rank, int) or rank < 0:
        found.append(f"rank={rank!r}: a number of this process' own, from 0")
    if not 0 <= grace_s < math.inf:
        found.append(f"grace_s={grace_s!r}: seconds, at least 0")
    if not (math.isfinite(weight) and weight >= 0):
        found.append(f"weight={weight!r}: finite, and at least 0")
    return found


def _kinds(codec: Codec) -> set[str]:
    probe = Spec((Part("probe", (64, 64), 0, "matrix"),), 0, 64 * 64, torch.float32)
    return {leaf.kind for _, leaf in codec.init(probe, Seat(0, (0, 1), 0, 0)).walk()}


class _Alone:
    """A driver of no flights."""

    lanes = 1
    among: Ranks = ()
    transport: Link = LOCAL_NETWORK

    def __init__(self, rank: int, world: int, leave: Callable[[], None]) -> None:
        self.rank, self.world, self._leave = rank, world, leave

    def prepare(self, groups: tuple[Ranks, ...], lanes: int | None = None) -> None:
        """Nothing to build."""

    def at(self, label: str) -> None:
        """Nobody listens."""

    def start(self, flight: Flight, lane: int, label: str) -> Any:
        raise FlightError(f"{label}: ranks of a quorum fly nothing that all of them would have to wait for")

    def close(self) -> None:
        """Tell the others that they need not wait for this rank."""
        with suppress(ThinwireError):
            self._leave()

    def abandon(self) -> None:
        self.close()
