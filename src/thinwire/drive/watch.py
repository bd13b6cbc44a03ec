"""Find out who is gone when a flight fails, by heartbeats in the store and a beacon at every rank.

Each rank's thread writes a counter, its step and the hops that it is in once an `interval`. Nobody
compares clocks: a rank whose counter does not move while a diagnosis looks on is silent. Before it
is called lost its beacon is asked, by this rank and by others (`beacon`), and what all that comes
to is judged by `blame`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Any

from thinwire.drive.addresses import Addresses
from thinwire.drive.asks import Asks, NoAnswerError, address_of, endpoint_of
from thinwire.drive.beacon import ANSWER_S, CONNECT_S, Beacon, ask, ask_all, own_address
from thinwire.drive.blame import Diagnosis, End, Evidence, Hops, Standing, judge, read_standing
from thinwire.drive.verdicts import EVERYBODY_LOOKS, Found, Verdicts, posted
from thinwire.errors import FlightError
from thinwire.text.words import error_text

INTERVAL_S = 0.5
"""Between two beats of a rank, up to a thousand ranks."""
_LOOK = 4  # intervals that a diagnosis looks on
_MOVES = 2  # beats of its own that it must see meanwhile
_ANSWER_S = 2 * _LOOK * INTERVAL_S  # that the store has
_START_S = 60.0  # that it has at the start, when every rank asks at once
_BEATS_PER_S = 2000  # of all ranks that the store takes: in a large world each beats less often
_MOST_ASKED = EVERYBODY_LOOKS  # ranks that a diagnosis asks at a time
_MOST_NOTIFIED = 32  # ranks that this one sends a message of its end
_HELPERS = 3  # ranks that are asked to try another
_LINGER_S = 30.0  # that the beacon answers after a failure, while others look


class Watch:
    """A watch over ranks: this one's heartbeat and beacon, and a view of the others'.

    Args:
        store: a store of its own connection (a clone), below a prefix of its own.
        rank: this rank in the group; world: how many there are.
        host: the rank whose process holds the store, or `None` where a launcher does.
        hops: where this rank's flights are, by lane.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        host: int | None = 0,
        hops: Callable[[], Hops] = dict,
    ) -> None:
        self._store, self.rank, self.world, self._host, self._hops = store, rank, world, host, hops
        self._asks = Asks(address_of(store), _ANSWER_S)
        self._verdicts = Verdicts(self._asks, store, rank, world)
        self._interval_s = max(INTERVAL_S, world / _BEATS_PER_S)
        self._label = "attach"
        self._count = 0
        self._end: tuple[End, str, Diagnosis | None] = "", "", None
        self._ended_standings: dict[int, Standing] = {}  # by rank, as its message reported
        self._stop = threading.Event()
        self._process = os.getpid()
        self._asks.ask(lambda: store.set_timeout(timedelta(seconds=_ANSWER_S)))
        token = self._asks.ask(lambda: store.compare_set("token", "", uuid.uuid4().hex), _START_S)
        self._token = token.decode(errors="replace")
        self._addresses = Addresses(self._asks, store, self._token, rank, world, host)
        self._beacon = self._light()
        self._beat(_START_S)
        meet = partial(self._addresses.meet, self._stop, self._interval_s)
        for target in (self._loop, meet):
            threading.Thread(target=target, name="thinwire-heartbeat", daemon=True).start()
        itself = weakref.ref(self)
        self._at_exit = lambda: _exiting(itself)
        atexit.register(self._at_exit)

    def set_phase(self, label: str) -> None:
        """Set the phase that this rank reports with its next beat."""
        self._label = label

    @property
    def standing(self) -> Standing:
        """Return this rank's standing, as it reports it."""
        return Standing(self._count, self._label, self._hops(), *self._end)

    def diagnose(self) -> Found:
        """Return the verdict and where ranks stand.

        In a large world one rank looks for all, lest K looks at K ranks hold up the store.
        """
        if self.world > EVERYBODY_LOOKS:
            # without a store each rank is on its own
            with contextlib.suppress(NoAnswerError):
                verdict = self._verdicts.verdict(self._look)
                return self._look_near(verdict) if verdict[0].kind == "nobody" else verdict
        return self._look()

    def _look(self) -> Found:
        """Look at heartbeats and beacons for a while; return the verdict and where ranks stand."""
        # 1. A rank that has recorded its own error is to blame: no need to look on.
        seen = self._nothing_seen()
        before = self._read(seen)
        seen.standings |= {rank: standing for rank, standing in before.items() if standing.ended}
        if judge(seen).kind == "raised":
            return self._judged(seen, before)
        # 2. Ask the beacons, and look which heartbeats move. This rank's own must move, too: where
        #    its beats reach the store slowly, so do the others'.
        looked, after = time.monotonic(), before
        self._probe(seen, self._worth_asking(seen, before))
        time.sleep(max(0.0, looked + _LOOK * self._interval_s - time.monotonic()))
        own = 0
        while seen.store == "answers":
            after = self._read(seen)
            seen.moving |= {
                rank
                for rank, standing in after.items()
                if standing.count != before.get(rank, standing).count
            }
            own = (
                after[self.rank].count - before[self.rank].count
                if self.rank in after and self.rank in before
                else own
            )
            if own >= _MOVES or self._stop.is_set() or time.monotonic() - looked > 3 * _ANSWER_S:
                break
            time.sleep(self._interval_s)
        # The store has not even shown this rank's beats: it can accuse nobody.
        if own < _MOVES and not self._stop.is_set():
            seen.moving |= {rank for rank, standing in after.items() if standing.count}
        # 3. Ask those whose hearts do not beat and that were not asked; whoever is left unasked is
        #    not accused. Ask those again that did not answer, as a busy process has had its time;
        #    and have others try those that this rank cannot reach.
        beating = seen.moving | {rank for rank in seen.others if self._ended(rank, after)}
        still = [rank for rank in seen.others if rank not in beating and rank not in seen.probes]
        self._probe(seen, still[:_MOST_ASKED])
        seen.unasked = set(still[_MOST_ASKED:])
        late = {
            rank: state
            for rank, state in seen.probes.items()
            if state in ("silent", "refused") and not self._ended(rank, after)
        }
        self._probe(seen, list(late))
        self._have_tried(
            seen, [rank for rank, state in seen.probes.items() if state == "unreachable"]
        )
        # 4. Judge. Where nobody is to blame, follow who waits for whom, and judge again.
        verdict = self._judged(seen, before | after)
        if verdict[0].kind in ("nobody", "store", "left"):
            self._follow_waits(seen)
            verdict = self._judged(seen, before | after)
        return verdict

    def _look_near(self, verdict: Found) -> Found:
        """Return the link that is cut between this rank and one that it waits for; where there is
        none, what was found for all."""
        waits = [peer for _, _, peers in self._hops().values() for peer in peers][:_HELPERS]
        seen = self._nothing_seen()
        seen.standings[self.rank] = self.standing
        seen.unasked = set(seen.others)  # the others' lives were judged already
        self._probe(seen, [*waits, *self._addresses.near[:_HELPERS]])
        self._have_tried(seen, [rank for rank in waits if seen.probes.get(rank) == "unreachable"])
        near = judge(seen)
        return (near, verdict[1]) if near.kind == "link" else verdict

    def _nothing_seen(self) -> Evidence:
        facts = self.rank, self.world, self._host, self._asks.address
        return Evidence(*facts, "answers", met=set(self._addresses.met))

    def end(self, how: End, why: str = "", verdict: Diagnosis | None = None) -> None:
        """Notify the others how this rank ended. Only the first end counts."""
        if self._end[0] or os.getpid() != self._process:
            return
        self._end = how, why, verdict
        if not self._asks.stuck:
            # The others learn it from this rank's own beacon, too, or by the lines below.
            with contextlib.suppress(FlightError):
                self._beat()
        text = f"ended {json.dumps([self.rank, self.standing.plain()])}"
        addresses = self._addresses.by_rank
        others = [rank for rank in addresses if rank != self.rank][:_MOST_NOTIFIED]
        if sys.is_finalizing() or not threading.main_thread().is_alive():
            for rank in others:  # no thread can be started any more
                ask(addresses[rank], self._token, text, 0.5)
        else:
            ask_all({rank: addresses[rank] for rank in others}, self._token, text, 0.5)

    def close(self, error: BaseException | None = None) -> None:
        """Stop beating and say goodbye, or which error it was that ended this rank."""
        # 1. Say how this rank ended: in good order, by a flight that failed, or by another error.
        self._stop.set()
        if isinstance(error, FlightError):
            self.end("failed", error_text(error))
        elif error is not None:
            self.end("raised", described(error))
        else:
            self.end("closed")
        # 2. Let go of the store; the beacon stays for a while after a failure, as others may ask
        #    it.
        atexit.unregister(self._at_exit)
        self._asks.close()
        if self._beacon is not None and self._end[0] == "closed":
            self._beacon.close()
        elif self._beacon is not None:
            linger = threading.Timer(_LINGER_S, self._beacon.close)
            linger.daemon = True
            linger.start()

    # -- this rank
    # ---------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._count += 1
            with contextlib.suppress(
                FlightError
            ):  # a slow answer, or the store is gone and the flights will fail: try on
                self._beat()

    def _beat(self, limit_s: float = _ANSWER_S) -> None:
        text = json.dumps(self.standing.plain())
        self._asks.ask(lambda: self._store.set(f"beat/{self.rank}", text), limit_s)

    def _light(self) -> Beacon | None:
        try:
            beacon = Beacon(
                own_address(endpoint_of(self._store)),
                self._token,
                self._standing_plain,
                self._tries,
                self._take_end,
            )
        except OSError:  # no address: others go by the heartbeats alone
            return None
        self._asks.ask(lambda: self._store.set(f"beacon/{self.rank}", beacon.address), _START_S)
        return beacon

    def _standing_plain(self) -> dict[str, Any]:
        return self.standing.plain()

    def _tries(self, rank: int) -> dict[str, Any]:
        """Ask a rank's beacon for another rank that cannot reach it, and return the outcome."""
        state, answer = self._addresses.ask([rank])[rank]
        ended_standing = self._ended_standings.get(rank)
        return {
            "state": state,
            "standing": ended_standing.plain() if ended_standing is not None else answer or None,
        }

    def _take_end(self, value: Any) -> None:
        """Save another rank's message of its end."""
        if (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], int)
            and 0 <= value[0] < self.world
        ):
            standing = read_standing(value[1], self.world)
            if standing is not None:
                self._ended_standings[value[0]] = standing

    # -- the others
    # ---------------------------------------------------------------------------------------------

    def _read(self, seen: Evidence) -> dict[int, Standing]:
        """Return every rank's last beat, and note whether the store answers."""
        try:
            keys = [f"beat/{rank}" for rank in range(self.world)]
            beats = posted(self._asks, self._store, keys)
        except NoAnswerError as error:
            seen.store = "silent" if error.silent else "refused"
            return {}
        standings = {
            rank: read_standing(beats[rank], self.world) if rank in beats else Standing()
            for rank in range(self.world)
        }
        return {rank: standing for rank, standing in standings.items() if standing is not None}

    def _worth_asking(self, seen: Evidence, beats: dict[int, Standing]) -> list[int]:
        """Return the ranks to ask: all of a small world; else those that this rank waits for, the
        store's holder, and neighbours."""
        waits = [peer for _, _, peers in self._hops().values() for peer in peers]
        near = [(self.rank + step) % self.world for step in range(1, self.world)]
        holder = [] if self._host is None else [self._host]
        behind = sorted(beats, key=lambda rank: beats[rank].count)[:_HELPERS]
        return [
            rank
            for rank in dict.fromkeys([*waits[:_MOST_ASKED], *holder, *behind, *near])
            if rank != self.rank
        ][:_MOST_ASKED]

    def _probe(self, seen: Evidence, ranks: Collection[int]) -> None:
        for rank, (state, answer) in self._addresses.ask(ranks).items():
            seen.probes[rank] = state
            standing = read_standing(answer, self.world) if answer else None
            if standing is not None:
                seen.standings[rank] = standing

    def _have_tried(
        self, seen: Evidence, ranks: Collection[int], helpers: Collection[int] = ()
    ) -> None:
        """Have ranks that answer try those that do not answer here."""
        # 1. Who can help: a few that answer here.
        helpers = (
            helpers
            or [rank for rank, state in seen.probes.items() if state == "answers"][:_HELPERS]
        )
        # 2. Each of them tries each rank that is in question, and reports what came of it.
        for rank in ranks:
            addresses = {
                helper: self._addresses.by_rank[helper]
                for helper in helpers
                if helper != rank and helper in self._addresses.by_rank
            }
            results = ask_all(addresses, self._token, f"try {rank}", CONNECT_S + 2 * ANSWER_S)
            for helper, (state, answer) in results.items():
                outcome = answer.get("state")
                if state == "answers" and outcome in (
                    "answers",
                    "silent",
                    "refused",
                    "unreachable",
                ):
                    seen.tried.setdefault(helper, {})[rank] = outcome
                    # An end that the helper reports outweighs an older beat.
                    standing = (
                        read_standing(answer["standing"], self.world)
                        if answer.get("standing")
                        else None
                    )
                    if standing is not None and (rank not in seen.standings or standing.ended):
                        seen.standings[rank] = standing

    def _follow_waits(self, seen: Evidence) -> None:
        """Have ranks that answer try those that they wait for: two that live may not reach one
        another."""
        answering = [rank for rank, state in seen.probes.items() if state == "answers"]
        for rank in answering[: _HELPERS * 2]:
            waits = {
                peer
                for _, _, peers in seen.standings.get(rank, Standing()).hops.values()
                for peer in peers
            }
            self._have_tried(
                seen,
                [peer for peer in answering if peer in waits and peer != rank][:_HELPERS],
                [rank],
            )

    def _ended(self, rank: int, beats: dict[int, Standing]) -> bool:
        return bool(beats.get(rank, Standing()).ended) or rank in self._ended_standings

    def _judged(self, seen: Evidence, beats: dict[int, Standing]) -> Found:
        for rank, standing in (*beats.items(), *self._ended_standings.items()):
            earlier = seen.standings.get(rank)
            if earlier is None or (standing.ended and not earlier.ended):
                seen.standings[rank] = standing
        seen.standings[self.rank] = self.standing
        return judge(seen), dict(sorted(seen.standings.items()))


def described(error: BaseException) -> str:
    """Return an error's type and first words.

    Example:
        >>> described(ValueError("no such layer"))
        'ValueError: no such layer'
    """
    text = error_text(error)
    return text if text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _exiting(watch: weakref.ref[Watch]) -> None:
    """Notify the others that this process ends with its syncer open, and why, if Python can say."""
    living = watch()
    if living is not None:
        error = getattr(sys, "last_value", None)
        if isinstance(error, FlightError):
            living.end("failed", error_text(error))
        elif error is not None:
            living.end("raised", described(error))
        else:
            living.end("closed", "its process ended without closing the syncer")
