"""Choose for each bucket the route that takes the least time, by the routes' own formulas.

Steps, for each bucket:
    1. of the candidates, leave out those that cannot carry the codec, cannot serve the world, or
       encode a sum more than `losses` times
    2. compute the seconds of each by its formula, from codec, size, world and link, times what it
       took beyond its formula where `attach` has tried it
    3. take the first, in the candidates' order, that is within 5 % of the fastest
All of it follows from numbers that every rank holds alike, so ranks cannot disagree. `explain`
shows the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from torch import Tensor

from thinwire.core import (
    Codec,
    Flight,
    Link,
    Outcome,
    RankContext,
    Ranks,
    Route,
    Spec,
    State,
    Transport,
)
from thinwire.errors import StrategyError
from thinwire.how.direct import direct
from thinwire.how.gather import gather
from thinwire.how.halving_doubling import halving_doubling
from thinwire.how.native import native
from thinwire.how.ring import ring
from thinwire.how.tree import tree
from thinwire.how.two_shot import two_shot
from thinwire.net import Wire, uniform

_CANDIDATES = (native(), gather(), direct(), two_shot(), halving_doubling(), tree(), ring())
_NEAR = 1.05


@dataclass(frozen=True)
class auto(Route):
    """Take the fastest of several routes, bucket by bucket.

    Args:
        latency_s, rate_bytes_per_s, message_s: of the link between any two ranks: how long a byte
            is on its way, how many bytes go out a second, and how long a message holds its sender
            beside its bytes. The defaults are a local network of 1 Gb/s. At attach they are
            replaced by what was measured, where the engine measures (`bind`).
        window_bytes: what the transport's own all-reduce keeps in flight (gloo: 2 MiB); `None` for
            no limit.
        waits: a message waits until its receiver is ready (gloo), so that an exchange takes a round
            trip.
        losses: how often a sum may be encoded again on its way, where the codec loses something.
        routes: the candidates, the one to prefer among equals first; empty for native, gather,
            direct, two_shot, halving_doubling, tree and ring.
        times: of each candidate, how many times its formula it takes; empty for once. `attach`
            finds it on links that are long or lose packets, where formulas are not to be trusted.

    Raises:
        StrategyError: times, rates or losses that cannot be; a candidate without consensus; (when
            the strategy is built) no candidate carries the codec. At attach: none serves the world.

    Example:
        >>> from thinwire.what import topk, uniform
        >>> import torch
        >>> spec = Spec((), 0, 1_000_000, torch.float32)
        >>> [auto().choose(uniform(4), spec, world) for world in (2, 8)]
        [gather(), two_shot(back=None, slot_bytes=1048576)]
        >>> auto().choose(topk(0.01), spec, 8)
        gather()
    """

    latency_s: float = 100e-6
    rate_bytes_per_s: float = 125e6
    message_s: float = 20e-6
    window_bytes: int | None = 2 << 20
    waits: bool = True
    losses: int = 1
    routes: tuple[Route, ...] = ()
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # Each mistake is reported, not the first alone.
        reasons = []
        try:
            _ = self.link
        except ValueError as error:
            reasons.append(f"auto(…): {error}")
        if self.losses < 0:
            reasons.append(f"auto(losses={self.losses}): a sum is encoded again at least 0 times")
        if self.times and (len(self.times) != len(self.routes or _CANDIDATES)):
            reasons.append(
                f"auto(times={self.times}): give one for each of the "
                f"{len(self.routes or _CANDIDATES)} candidates"
            )
        if not all(each > 0 for each in self.times):
            reasons.append(f"auto(times={self.times}): each is above 0")
        reasons += [
            f"auto(routes=…): {route!r} leaves ranks with different sums; ask for it by itself"
            for route in self.routes
            if not route.consensus
        ]
        reasons += [
            "auto(routes=…): a candidate cannot be auto() itself"
            for route in self.routes
            if isinstance(route, auto)
        ]
        if reasons:
            raise StrategyError(reasons)

    @property
    def link(self) -> Link:
        """Return the link of its settings, or the one that was measured."""
        return _link(
            self.latency_s, self.rate_bytes_per_s, self.message_s, self.window_bytes, self.waits
        )

    @property
    def needs_link(self) -> bool:
        return True

    @property
    def uses_allreduce(self) -> bool:
        return any(route.uses_allreduce for route in self.candidates)

    @property
    def candidates(self) -> tuple[Route, ...]:
        return self.routes or _candidates(self.link)

    def bind(self, world: int, link: Link | None = None) -> Self:
        self.groups(world)
        # Candidates that do not serve this world drop out here; the others see the link, too.
        bound = tuple(
            route.bind(world, link) for route in self.routes if _serves(route, world) is None
        )
        if link is None:
            return replace(self, routes=bound, times=())
        return replace(
            self,
            latency_s=link.latency_s,
            rate_bytes_per_s=link.rate_bytes_per_s,
            message_s=link.message_s,
            window_bytes=link.window_bytes,
            waits=link.waits,
            routes=bound,
            times=(),
        )

    def alternatives(self, codec: Codec, world: int) -> tuple[Route, ...]:
        return tuple(
            route for route in self.candidates if _left_out(self, route, codec, world) is None
        )

    def corrected(self, times: Callable[[Route], float]) -> Self:
        return replace(self, times=tuple(map(times, self.candidates)))

    def reckoned(self, codec: Codec, spec: Spec, world: int) -> dict[Route, float]:
        """Return the seconds of each candidate that can carry it."""
        # Seconds are the slowest rank's, so every rank computes the same, and takes the same route.
        ctx = RankContext(0, tuple(range(world)), 0, 0)
        times = self.times or (1.0,) * len(self.candidates)
        return {
            route: factor * route.seconds(codec, spec, ctx, self.link)
            for route, factor in zip(self.candidates, times, strict=True)
            if _left_out(self, route, codec, world) is None
        }

    def refuses(self, codec: Codec) -> str | None:
        reasons = [route.refuses(codec) for route in self.candidates]
        return None if None in reasons else "; ".join(reason for reason in reasons if reason)

    def partners(self, group_rank: int, world: int) -> int:
        serving = [route for route in self.candidates if _serves(route, world) is None]
        return max(route.partners(group_rank, world) for route in serving)

    def groups(self, world: int) -> tuple[Ranks, ...]:
        serving = [route for route in self.candidates if _serves(route, world) is None]
        if not serving:
            raise StrategyError(
                [text for route in self.candidates if (text := _serves(route, world)) is not None]
            )
        return tuple(dict.fromkeys(group for route in serving for group in route.groups(world)))

    def choose(self, codec: Codec, spec: Spec, world: int) -> Route:
        """Return the route of a bucket, or of a span.

        Raises:
            StrategyError: no candidate can carry it; with every reason.
        """
        return _chosen(self, codec, spec, world)

    def explain(self, codec: Codec, spec: Spec, world: int) -> str:
        """Return each candidate with its seconds, or why it is left out; the choice is marked."""
        chosen, seconds = self.choose(codec, spec, world), self.reckoned(codec, spec, world)
        lines = [f"{spec.numel} values by {codec!r} on {world} ranks, {self.link}:"]
        # A line for each candidate, whether it could be chosen or not.
        for route in self.candidates:
            out = _left_out(self, route, codec, world)
            text = (
                out
                if out is not None
                else (
                    f"{seconds[route]:.3g} s, sums encoded again "
                    f"{route.reencodes(codec, world)} times"
                )
            )
            lines.append(f"{'>' if route == chosen else ' '} {route!r}: {text}")
        return "\n".join(lines)

    def init(self, codec: Codec, spec: Spec, ctx: RankContext) -> State:
        return self.choose(codec, spec, ctx.world).init(codec, spec, ctx)

    def carry(
        self, codec: Codec, x: Tensor, spec: Spec, state: State, ctx: RankContext
    ) -> Flight[Outcome]:
        return (yield from self.choose(codec, spec, ctx.world).carry(codec, x, spec, state, ctx))

    def reencodes(self, codec: Codec, world: int) -> int:
        return max(
            route.reencodes(codec, world)
            for route in self.candidates
            if _left_out(self, route, codec, world) is None
        )

    def sent_nbytes(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        return self.choose(codec, spec, ctx.world).sent_nbytes(codec, spec, ctx)

    def sent_messages(self, codec: Codec, spec: Spec, ctx: RankContext) -> float | None:
        return self.choose(codec, spec, ctx.world).sent_messages(codec, spec, ctx)

    def seconds(self, codec: Codec, spec: Spec, ctx: RankContext, link: Link) -> float:
        return self.choose(codec, spec, ctx.world).seconds(codec, spec, ctx, link)


@lru_cache(maxsize=64)
def _link(
    latency_s: float,
    rate_bytes_per_s: float,
    message_s: float,
    window_bytes: int | None,
    waits: bool,
) -> Link:
    if not rate_bytes_per_s > 0:  # refused in the unit that the user gave
        raise ValueError(f"rate_bytes_per_s={rate_bytes_per_s:g}: rates are positive")
    alike = uniform(2, bits_per_s=8 * rate_bytes_per_s, wire=Wire(latency_s), message_s=message_s)
    return alike.between(0, 1, Transport(window_bytes, waits))


@lru_cache(maxsize=64)
def _candidates(link: Link) -> tuple[Route, ...]:
    return tuple(route.bind(1, link) for route in _CANDIDATES)


@lru_cache(maxsize=4096)
def _chosen(route: auto, codec: Codec, spec: Spec, world: int) -> Route:
    # 1. Leave out what cannot carry it.
    out = {each: _left_out(route, each, codec, world) for each in route.candidates}
    if None not in out.values():
        raise StrategyError([f"{each!r}: {why}" for each, why in out.items() if why])
    # 2. Seconds by the formulas.
    seconds = route.reckoned(codec, spec, world)
    # 3. The first, in the candidates' order, that is nearly the fastest.
    best = min(seconds.values())
    return next(each for each, took in seconds.items() if took <= best * _NEAR)


def _left_out(route: auto, candidate: Route, codec: Codec, world: int) -> str | None:
    """Return why a candidate cannot be chosen, or `None`."""
    refusal = candidate.refuses(codec) or _serves(candidate, world)
    if refusal is None and codec.traits.lossy and candidate.reencodes(codec, world) > route.losses:
        return (
            f"it encodes a sum again {candidate.reencodes(codec, world)} times, where "
            f"losses={route.losses} are allowed"
        )
    return refusal


def _serves(route: Route, world: int) -> str | None:
    """Return why a route cannot serve a world, or `None`."""
    try:
        route.groups(world)
    except StrategyError as error:
        return str(error)
    return None
