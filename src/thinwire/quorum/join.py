"""Join rounds that close with a quorum, where `attach` needs all ranks together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import nn
from torch.optim import Optimizer

from thinwire.core import Flight, Ranks, Transport, travel
from thinwire.engine import agree, living, wrappers
from thinwire.engine.buckets import FlatBucket, build, plan
from thinwire.engine.observe.meter import Meter, Row
from thinwire.engine.options import Options, facts, persistent_buffers, problems
from thinwire.engine.session import Session
from thinwire.errors import AttachError, DisagreementError, FlightError, PayloadError, ThinwireError
from thinwire.quorum.entries import Bounds, read_json
from thinwire.quorum.rendezvous_store import RendezvousStore
from thinwire.quorum.rounds import Limits
from thinwire.quorum.syncer import QuorumSyncer
from thinwire.strategy import Strategy

WEIGHTS = 1000.0  # times the first rank's, what a contribution may weigh
MOST_RANKS = 1_000_000
# Bytes of a value's JSON: what belongs to no tensor, and each tensor's.
HEAD_BYTES, TENSOR_BYTES = 1 << 16, 256


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
    max_weight: float | None = None,
    max_world: int | None = None,
    scaler: Any = None,
    bucket_bytes: int = 25 << 20,
    slice_bytes: int | None = None,
    timeout: timedelta = timedelta(minutes=5),
    seed: int = 0,
) -> QuorumSyncer:
    """Take part in rounds that close with a quorum; at the start, or later, from the newest anchor.
    No process group is needed.

    Args:
        model: as in `attach`. Whoever joins first gives all others its parameters and buffers.
        optimizer: the one that updates it; a rank that comes later begins with a fresh one.
        strategy: `every(H)`, any codec of one packet, `gather()`, `deltas(…)` without alpha and
            eager: DiLoCo, SparseLoCo and the like.
        store: of `torch.distributed`, such as a `TCPStore`, the same for all. The process that
            holds it must outlive the run; every contribution goes there and from there to every
            rank. Whoever reaches it can write there: what no rank can have written does not count,
            or ends the run with an error.
        rank: this rank's number, from 0, used by one process at a time. One that is started again
            may have its old number.
        world: how many ranks there are as a rule; the first round expects ranks 0 to world - 1.
        quorum: how many ranks close a round, 1 to world.
        grace_s: how long a round that has its quorum waits for the others who are expected.
        weight: this rank's weight in means, at least 0: its tokens in a round, say; `sync.weigh`
            changes it.
        max_weight: the greatest weight that counts, from any rank; `None`: the first rank's choice,
            else 1,000 times its `weight` (at least 1).
        max_world: every rank's number is below it, so it is above `world` where others may come;
            `None`: `world`. What claims to be of another rank does not count.
        scaler: as in `attach`.
        bucket_bytes: as in `attach`.
        slice_bytes: as in `attach`.
        timeout: how long a round waits for its quorum, and whoever comes for an anchor, which a
            rank puts up at the end of a round: give it more than the longest round takes. Also how
            long the store has for each answer (at least 2 s).
        seed: of every random draw; the same on every rank.

    Raises:
        AttachError: a strategy that rounds cannot have, options out of range, a model that cannot
            be attached.
        DisagreementError: the run has another strategy, model or options.
        QuorumError: nobody serves the newest anchor in time; at a step, too few for a quorum came.
        StrategyError: a parameter that the outer optimiser refuses, or `by_rank` without a codec
            for this rank.
        FlightError: the store does not answer; at a step, a delta that is not finite, or a round of
            which all weigh 0.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from thinwire.how import gather
        >>> from thinwire.on import deltas
        >>> from thinwire.when import every
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> strategy = Strategy(every(2), how=gather(), on=deltas())
        >>> one = {"store": dist.HashStore(), "rank": 0, "world": 1, "quorum": 1}
        >>> with join(model, optimizer, strategy, **one) as sync:
        ...     while sync.step < 4:
        ...         model(torch.ones(1, 4)).sum().backward()
        ...         optimizer.step()
        ...     sync.version
        2
    """
    # 1. Validate: what this rank cannot join, before it touches the store.
    options = Options(bucket_bytes, slice_bytes, 1, "backward", "local", scaler, seed)
    refused = problems(model, optimizer, strategy, options)
    refused += _unfit(strategy, world, quorum, grace_s) if isinstance(strategy, Strategy) else []
    refused += _unfit_weights(weight, max_weight) + _unfit_numbers(rank, world, max_world)
    if options.slice_bytes == "auto":
        refused.append(
            "slice_bytes='auto': no link is measured between ranks that meet at a store; say how "
            "many bytes"
        )
    refused += living.conflicts(model, strategy, (), world) if not refused else []
    if refused:
        raise AttachError("cannot join:\n" + "\n".join(refused))
    # 2. Agree through the store: the first rank's facts are the run's, and later ranks compare.
    ranks, most = (
        max_world or world,
        max_weight if max_weight is not None else WEIGHTS * max(weight, 1.0),
    )
    rendezvous = RendezvousStore(store, timeout.total_seconds(), Bounds(ranks, most, 0, 0))
    mine = facts(model, strategy, options) | {
        "world": world,
        "quorum": quorum,
        "grace_s": grace_s,
        "max_world": ranks,
    }
    theirs = _agreed(
        rendezvous, mine | {"max_weight": most}, ("max_weight",) if max_weight is None else ()
    )
    # 3. Build the buckets; in float32, as differences of 16-bit parameters need it.
    driver, meter = _Alone(rank, world, rendezvous), Meter(world)
    built = build(
        plan(model, bucket_bytes, strategy.when, wide=True),
        strategy,
        strategy.how,
        driver,
        1,
        slice_bytes,
        seed,
    )
    meter.rows.extend(Row(f"bucket {bucket.index}", bucket.spec.numel) for bucket in built)
    session = Session.begin(
        model,
        wrappers.unwrapped(optimizer),
        strategy,
        driver,
        built,
        meter,
        options,
        by_quorum=True,
    )
    # 4. Bound what may be read from the store by what this model can make.
    rendezvous.bounds = Bounds(
        ranks, float(theirs["max_weight"]), *_most_bytes(strategy, built, model)
    )
    # 5. Start the run, or take its newest anchor.
    limits = Limits(quorum, grace_s, timeout.total_seconds())
    sync = QuorumSyncer(session, rendezvous, limits)
    try:
        sync.rounds.join()
        sync.weigh(weight)
    # The hooks on model and optimiser must not outlive a join that failed.
    except BaseException:
        sync.close()
        raise
    return sync


def _agreed(
    rendezvous: RendezvousStore, mine: dict[str, Any], any_of: tuple[str, ...]
) -> dict[str, Any]:
    """Return the facts of the run, which are this rank's if it is the first; those named in
    `any_of` may differ.

    Raises:
        DisagreementError: they are others.
        FlightError: the store holds no facts.
    """
    # 1. Read what the first rank wrote, which may be anything.
    try:
        theirs = read_json(rendezvous.set_once("facts", json.dumps(mine)), most=1 << 26)
        usable = (
            isinstance(theirs, dict)
            and isinstance(theirs.get("max_weight"), int | float)
            and 0 < theirs["max_weight"] < math.inf
        )
    except PayloadError as error:
        raise FlightError(
            f"cannot join: the store holds no facts of a run ({error}): something else writes there"
        ) from error
    if not usable:
        raise FlightError(
            "cannot join: the store holds no facts of a run: something else writes there, or "
            "another version of thinwire"
        )
    # 2. Compare, in the order in which a difference is reported.
    for name, here in mine.items():
        there = theirs.get(name)
        if agree.compared_by(there) != agree.compared_by(here) and name not in any_of:
            raise DisagreementError(
                f"cannot join: {name} differs (the run: {agree.shown(there)!r}; here: "
                f"{agree.shown(here)!r}). "
                "Give every rank the same"
            )
    facts_of_run: dict[str, Any] = theirs
    return facts_of_run


def _most_bytes(
    strategy: Strategy, buckets: Sequence[FlatBucket], model: nn.Module
) -> tuple[int, int]:
    """Return the most bytes that a contribution and a snapshot may have."""
    coder = strategy.what.single_packet_coder
    assert coder is not None, "refused before"
    specs = [part.spec for bucket in buckets for part in bucket.slices]
    leaves = [leaf.value for bucket in buckets for _, leaf in bucket.state.walk()]
    shared = [param for param in model.parameters() if not param.requires_grad] + [
        buffer for _, buffer in persistent_buffers(model)
    ]
    # A snapshot has the anchor's state as it is; a contribution is as long as its codec allows.
    held = sum(tensor.numel() * tensor.dtype.itemsize for tensor in leaves + shared)
    heads = [HEAD_BYTES + TENSOR_BYTES * count for count in (len(specs), len(leaves) + len(shared))]
    return heads[0] + sum(coder.max_nbytes(spec) for spec in specs), heads[1] + held


def _unfit(strategy: Strategy, world: int, quorum: int, grace_s: float) -> list[str]:
    """List why a strategy or its settings cannot be used in rounds with a quorum."""
    problems = travel.round_refusals(strategy.when, strategy.what, strategy.how, strategy.on)
    if (
        not isinstance(world, int)
        or world < 1
        or not isinstance(quorum, int)
        or not 1 <= quorum <= world
    ):
        problems.append(
            f"quorum={quorum!r} of world={world!r}: a quorum is 1 to world ranks, and a world at "
            "least 1"
        )
    if not 0 <= grace_s < math.inf:
        problems.append(f"grace_s={grace_s!r}: seconds, at least 0")
    return problems


def _unfit_numbers(rank: int, world: int, max_world: int | None) -> list[str]:
    problems = []
    if max_world is not None and not (
        isinstance(max_world, int) and isinstance(world, int) and world <= max_world <= MOST_RANKS
    ):
        problems.append(f"max_world={max_world!r}: from world to {MOST_RANKS}")
    elif not isinstance(rank, int) or rank < 0:
        problems.append(f"rank={rank!r}: a number of this process' own, from 0")
    elif isinstance(world, int) and rank >= (max_world or world):
        problems.append(
            f"rank={rank!r}: this run's ranks are below {max_world or world}. Where others than "
            f"the first {world} may come, give every "
            "rank the same max_world"
        )
    return problems


def _unfit_weights(weight: float, max_weight: float | None) -> list[str]:
    problems = []
    if not (math.isfinite(weight) and weight >= 0):
        problems.append(f"weight={weight!r}: finite, and at least 0")
    if max_weight is not None and not 0 < max_weight < math.inf:
        problems.append(f"max_weight={max_weight!r}: finite, and above 0")
    return problems


class _Alone:
    """A driver of ranks that exchange only through the store; it starts no flights."""

    lanes = 1
    global_ranks: Ranks = ()
    transport = Transport()

    def __init__(self, rank: int, world: int, rendezvous: RendezvousStore) -> None:
        self.rank, self.world, self._store = rank, world, rendezvous

    def transport_s(self) -> float:
        return 0.0

    def prepare(
        self, groups: tuple[Ranks, ...], lanes: int | None = None, peers: int | None = None
    ) -> None:
        """Build nothing: there are no groups."""

    def set_phase(self, label: str) -> None:
        """Ignore the label: nothing is exchanged."""

    def start(self, flight: Flight[Any], lane: int, label: str) -> Any:
        raise FlightError(
            f"{label}: ranks of a quorum fly nothing that all of them would have to wait for"
        )

    def close(self) -> None:
        """Record that this rank has left, so that no round waits for it."""
        with suppress(ThinwireError):  # a store that is gone: there is nothing to record it in
            self._store.leave(self.rank)

    def abandon(self, error: BaseException | None = None) -> None:
        self.close()
