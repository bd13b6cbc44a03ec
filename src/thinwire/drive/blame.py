"""Judge who is to blame for a flight that failed, by what a rank has seen.

Nothing here waits or touches a network.

A rank is accused only where its process is known to have ended or stopped, or where no rank that
was asked reaches it. A rank that only this one cannot reach is not accused: the link between the
two is named. Who cannot reach the store says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from thinwire.drive.beacon import State

Kind: TypeAlias = Literal["raised", "lost", "link", "left", "alone", "store", "nobody"]
End: TypeAlias = Literal["", "closed", "raised", "failed"]
Hops: TypeAlias = dict[int, tuple[int, int, tuple[int, ...]]]
_ENDS: dict[str, End] = {"": "", "closed": "closed", "raised": "raised", "failed": "failed"}
_KINDS = ("raised", "lost", "link", "left", "alone", "store", "nobody")
_WORDS = 600  # of a sentence from another rank


@dataclass(frozen=True)
class Diagnosis:
    """A verdict on a flight that failed.

    kind: ranks *raised* an error, are *lost*, or *left* in good order; the *link* between two
        carries nothing; this rank reaches no other (*alone*), or not the *store*; or *nobody* is to
        blame that this rank knows of.
    ranks: those that are to blame; of a link its two ends.
    link: (sender, receiver) where the direction is known.
    """

    kind: Kind
    ranks: tuple[int, ...]
    text: str
    link: tuple[int, int] | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "kind": self.kind,
            "ranks": list(self.ranks),
            "text": self.text[:_WORDS],
            "link": self.link and list(self.link),
        }


@dataclass(frozen=True)
class Standing:
    """A rank's report of itself.

    hops: by lane: which flight it is in, which hop of that, and the ranks whose bytes it waits for.
    ended: how it ended, *failed* by the `verdict` of its own diagnosis; why: the words.
    """

    count: int = 0
    label: str = "never came"
    hops: Hops = field(default_factory=dict)
    ended: End = ""
    why: str = ""
    verdict: Diagnosis | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        hops = [
            [lane, flight, hop, list(peers)] for lane, (flight, hop, peers) in self.hops.items()
        ]
        verdict = self.verdict.plain() if self.verdict is not None else None
        return {
            "count": self.count,
            "label": self.label[:_WORDS],
            "hops": hops,
            "ended": self.ended,
            "why": self.why[:_WORDS],
            "verdict": verdict,
        }


def read_standing(value: Any, world: int) -> Standing | None:
    """Return a standing from what another rank wrote; `None` where no rank writes that."""
    try:
        value = json.loads(value) if isinstance(value, str | bytes) else value
        hops = {
            int(lane): (int(flight), int(hop), _ranks(peers, world))
            for lane, flight, hop, peers in value["hops"][:64]
        }
        verdict = read_diagnosis(value["verdict"], world) if value["verdict"] is not None else None
        ended = _ENDS[value["ended"]]
        return Standing(
            int(value["count"]),
            str(value["label"])[:_WORDS],
            hops,
            ended,
            str(value["why"])[:_WORDS],
            verdict,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # `None` marks it
        return None


def read_diagnosis(value: Any, world: int) -> Diagnosis | None:
    """Return a verdict from what another rank wrote; `None` where no rank writes that."""
    if not isinstance(value, dict) or value.get("kind") not in _KINDS:
        return None
    link = _ranks(value.get("link") or (), world)
    both = (link[0], link[1]) if len(link) == 2 else None
    return Diagnosis(
        value["kind"],
        _ranks(value.get("ranks") or (), world),
        str(value.get("text"))[:_WORDS],
        both,
    )


def _ranks(values: Iterable[Any], world: int) -> tuple[int, ...]:
    ranks = tuple(int(value) for value in values)
    if any(not 0 <= rank < world for rank in ranks):
        raise ValueError("no rank")
    return ranks


@dataclass
class Evidence:
    """A collection of what one rank has seen.

    holder: the rank whose process holds the store at `address`, or `None` where a launcher does.
    store: whether it answers.
    standings: the newest that is known of each rank; moving: whose heartbeats moved meanwhile; met:
    whose beacon has ever answered.
    probes: what came of asking each rank's beacon; tried: {who asked: {whom: what came of it}}, by
    others. unasked: whose beacons nobody asked, as they were too many.
    """

    rank: int
    world: int
    holder: int | None
    address: str
    store: Literal["answers", "silent", "refused"]
    standings: dict[int, Standing] = field(default_factory=dict)
    moving: set[int] = field(default_factory=set)
    met: set[int] = field(default_factory=set)
    probes: dict[int, State] = field(default_factory=dict)
    tried: dict[int, dict[int, State]] = field(default_factory=dict)
    unasked: set[int] = field(default_factory=set)

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.world) if rank != self.rank]

    def ended(self, rank: int) -> End:
        return self.standings.get(rank, Standing()).ended

    def of_others(self, rank: int) -> dict[int, State]:
        """Return what came of others' asking a rank."""
        return {
            asker: states[rank]
            for asker, states in self.tried.items()
            if rank in states and asker != rank
        }


def judge(seen: Evidence) -> Diagnosis:
    """Return the verdict: the gravest that the evidence bears out."""
    diagnosis = (
        _raised(seen)
        or _lost(seen)
        or _links(seen)
        or _alone(seen)
        or _by_others(seen)
        or _left(seen)
        or _store(seen)
    )
    return diagnosis or Diagnosis("nobody", (), "every rank that was asked answers")


def _raised(seen: Evidence) -> Diagnosis | None:
    raised = [rank for rank in seen.others if seen.ended(rank) == "raised"]
    if not raised:
        return None
    return Diagnosis(
        "raised",
        tuple(raised),
        "; ".join(f"rank {rank} raised {seen.standings[rank].why}" for rank in raised),
    )


def _lost(seen: Evidence) -> Diagnosis | None:
    """Return the ranks that have ended without a message, or that nobody reaches."""
    why = {
        rank: reason
        for rank in seen.others
        if not seen.ended(rank) and (reason := _reason(seen, rank))
    }
    if not why:
        return None
    who = " and ".join(f"rank {rank}" for rank in why)
    return Diagnosis("lost", tuple(why), f"{who} lost: " + "; ".join(dict.fromkeys(why.values())))


def _reason(seen: Evidence, rank: int) -> str:
    """Return why a rank is lost; empty where it is not certain that it is."""
    state, of_others = seen.probes.get(rank, "unknown"), seen.of_others(rank)
    states = {state, *of_others.values()}
    # 1. One answer, to anybody, or one beat that moved proves that it lives. Who was not asked is
    #    not accused by a heartbeat alone.
    if "answers" in states or rank in seen.moving or rank in seen.unasked:
        return ""
    store_answers, holds = seen.store == "answers", seen.holder == rank
    # 2. Else the surest reason that the evidence bears out, in this order.
    reasons = (
        ("refused" in states, "no heartbeat, and its process has ended"),
        (
            "silent" in states,
            (
                "no heartbeat; its process takes connections and does not answer, so it is "
                "stopped or hangs"
            ),
        ),
        (
            state == "unreachable" and of_others,
            f"no heartbeat, and neither this rank nor {_named(of_others)} can reach it",
        ),
        (
            state == "unreachable" and store_answers and not holds and not _cut_off(seen),
            "no heartbeat, and this rank cannot reach it",
        ),
        (state == "unknown" and store_answers, "no heartbeat"),
        (
            state == "unknown" and seen.store == "refused" and holds,
            f"the store at {seen.address}, which its process holds, is gone",
        ),
    )
    return next((words for true, words in reasons if true), "")


def _cut_off(seen: Evidence) -> bool:
    """Return whether this rank reaches no other, though there are several: its own link is the
    likelier cause."""
    states = [seen.probes.get(rank, "unknown") for rank in seen.others if not seen.ended(rank)]
    local = seen.store != "answers" or seen.holder == seen.rank
    return local and len(states) > 1 and all(state == "unreachable" for state in states)


def _links(seen: Evidence) -> Diagnosis | None:
    """Return a pair of ranks that both live and between which nothing passes."""
    for one, other in _cut_links(seen):
        link = direction(one, other, seen.standings)
        ends = (min(one, other), max(one, other))
        if link is not None:
            text = f"nothing from rank {link[0]} reaches rank {link[1]}, though both live"
        else:
            text = f"nothing passes between rank {ends[0]} and rank {ends[1]}, though both live"
        return Diagnosis("link", link or ends, text, link)
    return None


def _cut_links(seen: Evidence) -> Iterator[tuple[int, int]]:
    """Yield pairs of ranks that live and do not reach one another."""
    # 1. This rank's own links. A rank whose beacon has never answered counts only where this one
    #    waits for its bytes: that port may have been blocked from the start.
    waits = {
        peer
        for _, _, peers in seen.standings.get(seen.rank, Standing()).hops.values()
        for peer in peers
    }
    for rank in seen.others:
        lives = rank in seen.moving or "answers" in seen.of_others(rank).values()
        if seen.probes.get(rank) == "unreachable" and lives and (rank in seen.met or rank in waits):
            yield seen.rank, rank
    # 2. Links between others, both of which answer here.
    for asker, states in seen.tried.items():
        for rank, state in states.items():
            if (
                state == "unreachable"
                and seen.probes.get(rank) == seen.probes.get(asker) == "answers"
            ):
                yield asker, rank


def direction(one: int, other: int, standings: Mapping[int, Standing]) -> tuple[int, int] | None:
    """Return (sender, receiver) of the way that carries nothing between two ranks, as far as their
    hops tell.

    A rank that waits for another's bytes, of a hop that the other has left behind, was sent them in
    vain.

    Example:
        >>> ahead = Standing(hops={0: (7, 2, (3,))})
        >>> behind = Standing(hops={0: (7, 1, (1, 2))})
        >>> direction(1, 3, {1: ahead, 3: behind}), direction(1, 3, {1: ahead})
        ((1, 3), None)
    """
    ways = set()
    for sender, receiver in ((one, other), (other, one)):
        ahead, behind = (standings.get(rank, Standing()).hops for rank in (sender, receiver))
        for lane, (flight, hop, peers) in behind.items():
            if sender in peers and lane in ahead and ahead[lane][:2] > (flight, hop):
                ways.add((sender, receiver))
    return ways.pop() if len(ways) == 1 else None


def _alone(seen: Evidence) -> Diagnosis | None:
    """Return that this rank itself is cut off, where it reaches nobody."""
    if not _cut_off(seen):
        return None
    tried = _named(dict.fromkeys(rank for rank in seen.others if not seen.ended(rank)))
    return Diagnosis(
        "alone",
        (),
        (
            f"this rank reaches neither of {tried}{_nor_store(seen)}: its own link is cut, or "
            "theirs are"
        ),
    )


def _left(seen: Evidence) -> Diagnosis | None:
    left = [rank for rank in seen.others if seen.ended(rank) == "closed"]
    if not left:
        return None
    why = "; ".join(
        dict.fromkeys(seen.standings[rank].why for rank in left if seen.standings[rank].why)
    )
    return Diagnosis(
        "left", tuple(left), f"{_named(left)} closed and left" + (f" ({why})" if why else "")
    )


def _by_others(seen: Evidence) -> Diagnosis | None:
    """Return what ranks have found that ended before this one looked."""
    verdicts = {
        rank: standing.verdict
        for rank, standing in seen.standings.items()
        if rank != seen.rank and standing.verdict is not None
    }
    # The gravest verdict first; a rank that found this one lost has shown that this one is cut off.
    for kind in ("raised", "lost", "link", "left"):
        for rank, verdict in sorted(verdicts.items()):
            if verdict.kind != kind:
                continue
            if kind == "lost" and seen.rank in verdict.ranks:
                text = f"rank {rank} did not reach this rank, and has ended{_nor_store(seen)}"
                return Diagnosis("alone", (), text)
            by = "" if "(found by" in verdict.text else f" (found by rank {rank})"
            return Diagnosis(verdict.kind, verdict.ranks, verdict.text + by, verdict.link)
    return None


def _store(seen: Evidence) -> Diagnosis | None:
    if seen.store == "answers":
        return None
    how = "does not answer" if seen.store == "silent" else "has closed the connection"
    return Diagnosis(
        "store", (), f"this rank cannot reach the store at {seen.address}{_held(seen)}: it {how}"
    )


def _held(seen: Evidence) -> str:
    return ", which a launcher holds" if seen.holder is None else f", held by rank {seen.holder}"


def _nor_store(seen: Evidence) -> str:
    return "" if seen.store == "answers" else f", nor the store at {seen.address}{_held(seen)}"


def _named(ranks: Iterable[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in sorted(ranks))
