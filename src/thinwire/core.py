"""Every noun of the house: what a bucket is, what travels, who decides and who moves.

Code that decides is a generator that yields what it wants moved; code that touches a network or a clock is a
small driver. A codec yields a `Packet` and is sent back the *sum over ranks of what those packets decode to*;
a route drives the codec and yields `Hop`s; a driver moves them. So PowerSGD (two packets, the second made from
the answer to the first) and 8-bit rounding (one packet) travel every route, on a cluster and in a test alike.

Routes **sum**. The engine scales each rank's contribution by its weight over the sum of weights beforehand, so a
sum is the weighted mean, and residuals (in the same units) may be added over ranks and handed to another world.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from thinwire.errors import PayloadError
from thinwire.registry import Member

Role: TypeAlias = Literal["matrix", "embedding", "vector"]
Ranks: TypeAlias = tuple[int, ...]
Kind: TypeAlias = Literal["summed", "sharded", "replicated", "private"]
Grain: TypeAlias = int | Literal["part", "bucket"]
"""Where a route may cut a bucket: after every n-th element, between parts (parameters), or not at all."""


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter's place in a flat bucket: elements `begin` to `begin + numel` of it."""

    name: str
    shape: tuple[int, ...]
    begin: int
    role: Role

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def end(self) -> int:
        return self.begin + self.numel


@dataclass(frozen=True, slots=True)
class Piece:
    """The elements `low` to `high` of one part, lying at `at` in the span that holds them."""

    part: Part
    low: int
    high: int
    at: int

    @property
    def whole(self) -> bool:
        return self.low == 0 and self.high == self.part.numel


@dataclass(frozen=True, slots=True)
class Spec:
    """What every rank already knows of a bucket, or of a span of one; it never travels.

    Parts, or pieces of them, cover the span; only the core of a chain has values and no parts.

    Example:
        >>> parts = (Part("a", (2, 3), 0, "matrix"), Part("b", (4,), 6, "vector"))
        >>> spec = Spec(parts, begin=0, numel=10, dtype=torch.float32)
        >>> [(p.part.name, p.low, p.high, p.at) for p in spec.span(4, 9).pieces()]
        [('a', 4, 6, 0), ('b', 0, 3, 2)]
    """

    parts: tuple[Part, ...]
    begin: int
    numel: int
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.begin + self.numel

    @property
    def work(self) -> torch.dtype:
        """The dtype of sums and residuals: float64 for float64, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def key(self) -> str:
        """A name that survives another bucket layout: the first parameter and the element in it."""
        first = next(self.pieces(), None)
        return f"{first.part.name}@{first.low}" if first else "empty"

    def pieces(self) -> Iterator[Piece]:
        """The parts, or pieces of parts, that lie in the span, in order."""
        for part in self.parts:
            low, high = max(self.begin, part.begin), min(self.end, part.end)
            if low < high:
                yield Piece(part, low - part.begin, high - part.begin, low - self.begin)

    def span(self, begin: int, end: int) -> Spec:
        """The elements `begin` to `end` of the bucket (in the bucket's own counting)."""
        inside = tuple(part for part in self.parts if part.begin < end and part.end > begin)
        return Spec(inside, begin, end - begin, self.dtype)

    def cut(self, ways: int, grain: Grain) -> tuple[Spec, ...]:
        """The span in `ways` runs as even as the grain allows; some are empty where there is too little to share.

        Example:
            >>> spec = Spec((Part("a", (10,), 0, "vector"),), 0, 10, torch.float32)
            >>> [s.numel for s in spec.cut(3, grain=4)]
            [4, 4, 2]
        """
        if grain == "bucket":
            marks = [self.begin] + [self.end] * ways
        elif grain == "part":
            ends = [self.begin] + [self.begin + piece.at + piece.high - piece.low for piece in self.pieces()]
            marks = [min(ends, key=lambda end: (abs(end - self.begin - i * self.numel / ways), end)) for i in range(ways)] + [self.end]
        else:
            blocks = -(-self.numel // grain)
            marks = [min(self.begin + (i * blocks + ways - 1) // ways * grain, self.end) for i in range(ways + 1)]
        return tuple(self.span(low, high) for low, high in pairwise(marks))


@dataclass(frozen=True, slots=True)
class Seat:
    """Who speaks, with whom, and when: it keys every random draw.

    `group` are the ranks that take part, ascending; `key` tells apart the hops of one flight.
    """

    rank: int
    group: Ranks
    step: int
    seed: int
    key: str = ""

    @property
    def world(self) -> int:
        return len(self.group)

    @property
    def place(self) -> int:
        return self.group.index(self.rank)

    @property
    def others(self) -> Ranks:
        """The other ranks in the order of a phased exchange: round k goes to the k-th rank after this one."""
        return self.group[self.place + 1 :] + self.group[: self.place]

    def under(self, key: str) -> Seat:
        return replace(self, key=f"{self.key}/{key}")

    def draws(self, spec: Spec, *, shared: bool) -> torch.Generator:
        """A CPU generator keyed by (seed, step, key, span) and, unless `shared`, by rank: the same on every machine."""
        who = "*" if shared else str(self.rank)
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{self.key}/{spec.key}/{who}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(slots=True)
class Leaf:
    """A state tensor, what kind of state it is, and which parameters it belongs to.

    kind: *summed* (only its sum over ranks matters: residuals), *sharded* (each element has one owner),
        *replicated* (equal on all ranks) or *private* (a rank's own).
    spec: set where `value` is flat over that span; it is then saved by parameter and element.
    part: else the parameter that the whole tensor belongs to.
    fade: how much of an older value a newer one still holds (a residual's decay).
    group: the ranks whose values of this span a *summed* leaf is the sum of; empty for all.
    """

    value: Tensor
    kind: Kind
    spec: Spec | None = None
    part: str | None = None
    fade: float = 1.0
    group: Ranks = ()


@dataclass(slots=True)
class State:
    """A tree of leaves, owned, saved and resharded by the engine; codecs and routes own no tensors.

    A codec replaces `leaf.value` by a new tensor and never writes into it, so that the engine can take a step back.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    children: dict[str, State] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Leaf:
        return self.leaves[name]

    def child(self, name: str) -> State:
        return self.children[name]

    def walk(self, path: str = "") -> Iterator[tuple[str, Leaf]]:
        """Every leaf with its path; children with a number for a name (spans of one bucket) do not show in it."""
        for name, leaf in self.leaves.items():
            yield path + name, leaf
        for name, child in self.children.items():
            yield from child.walk(path if name.isdigit() else f"{path}{name}/")


@dataclass(frozen=True, slots=True)
class Packet:
    """What travels: one contiguous uint8 buffer, and how its answer is opened.

    payload: (nbytes,) uint8; scales and indices are inside it.
    spec: what it decodes to (the span, or an intermediate of the codec's maths such as PowerSGD's factors).
    sums: (nbytes, dtype) of the runs that may be added unopened as numbers; empty where the payload must be opened.
    """

    payload: Tensor
    spec: Spec
    coder: Coder
    state: State
    seat: Seat
    sums: tuple[tuple[int, torch.dtype], ...] = ()

    @property
    def fixed(self) -> bool:
        """Every rank's packet of this round has this length; else a route sends lengths first."""
        return self.coder.nbytes(self.spec) is not None

    def open(self, payload: Tensor, sender: int) -> Tensor:
        """What `sender`'s payload of the same round decodes to: (spec.numel,) spec.work."""
        return self.coder.decode(payload, self.spec, self.state, self.seat, sender)

    def add(self, total: Tensor | None, payload: Tensor, sender: int) -> Tensor:
        """`total` plus what `sender`'s payload decodes to, in place; a new tensor where there is no total yet."""
        if total is None:
            return self.open(payload, sender)
        self.coder.accumulate(total, payload, self.spec, self.state, self.seat, sender)
        return total


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a flight: the sum over ranks, and what this rank's share of it was.

    total: (spec.numel,) the sum of the contributions as decoded, bitwise equal on every rank of the group.
    sent: what this rank contributed after loss, computed when asked; `None` from a codec that loses nothing: what it was given, in the
        span's dtype. A route may not know it, and says `None` too.
    """

    total: Tensor
    sent: Callable[[], Tensor] | None = None


Rounds: TypeAlias = Generator[Packet, Tensor, Outcome]


class Codec(Member, ABC):
    """What to say: a frozen configuration; its state lives in the engine. All tensors are flat.

    A codec talks by `rounds`. One that speaks once is a `Coder` and gives `encode`, `decode` and `nbytes`.
    """

    kind: ClassVar[str] = "what"

    @property
    def grain(self) -> Grain:
        return 1

    @property
    def lossy(self) -> bool:
        """Some input does not survive."""
        return True

    @property
    def summable(self) -> bool:
        """Payloads may be added unopened (packets carry `sums`)."""
        return False

    @property
    def drops(self) -> bool:
        """Entries are left out, so encoding a sum again would lose what the ranks chose to say."""
        return False

    @property
    def opener(self) -> Coder | None:
        """Who opens its one packet a flight; `None` where it talks in several rounds or in parts."""
        return None

    def init(self, spec: Spec, seat: Seat) -> State:
        """Fresh state for a span."""
        return State()

    @abstractmethod
    def nbytes(self, spec: Spec) -> int | None:
        """Bytes of all packets of one flight of this span, exact; `None` where the data decides."""

    def max_nbytes(self, spec: Spec) -> int:
        """No flight of this span has more bytes."""
        exact = self.nbytes(spec)
        if exact is None:
            raise TypeError(f"{type(self).__name__} has data-sized payloads and must give max_nbytes")
        return exact

    @abstractmethod
    def rounds(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Rounds:
        """Yield packets of x (spec.numel,), each answered with the sum over ranks of what it decodes to; return the outcome.

        `x` stays as it is (a payload may alias it), and what is replaced in `state` before the last answer is settled.
        """


class Coder(Codec):
    """The easy codec: one packet a flight."""

    @property
    def opener(self) -> Coder:
        return self

    @abstractmethod
    def encode(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Tensor:
        """The payload of `x` (spec.numel,): (nbytes,) uint8, contiguous. `x` stays as it is (the payload may alias it)."""

    @abstractmethod
    def decode(self, payload: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> Tensor:
        """(spec.numel,) spec.work from a payload; it may alias the payload, which the caller hands over.

        Raises:
            PayloadError: the payload's length or content cannot be of this span.
        """

    def accumulate(self, total: Tensor, payload: Tensor, spec: Spec, state: State, seat: Seat, sender: int) -> None:
        """`total += decode(payload)`; a codec overrides it where one pass does both."""
        total.add_(self.decode(payload, spec, state, seat, sender))

    def sum_dtype(self, spec: Spec) -> torch.dtype | None:
        """Set where payloads may be added unopened: as numbers of that type."""
        return None

    def packet(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Packet:
        """The one packet of a flight."""
        payload = self.encode(x, spec, state, seat)
        dtype = self.sum_dtype(spec)
        sums = ((payload.numel(), dtype),) if dtype is not None else ()
        return Packet(payload, spec, self, state, seat, sums)

    def rounds(self, x: Tensor, spec: Spec, state: State, seat: Seat) -> Rounds:
        packet = self.packet(x, spec, state, seat)
        own = packet.payload.clone() if self.lossy and packet.sums else packet.payload  # what may be added is added in place
        total = yield packet
        return Outcome(total, (lambda: packet.open(own, seat.rank)) if self.lossy else None)

    def expect(self, payload: Tensor, nbytes: int) -> None:
        """Raise unless a payload has the length that it must have."""
        if payload.numel() != nbytes:
            raise PayloadError(f"{self!r}: a payload of {payload.numel()} bytes where {nbytes} were due; it was cut or is of another span")


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Sum `tensor` over `group` in place, by whatever the transport calls all-reduce; answered with it."""

    tensor: Tensor
    group: Ranks


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send bytes to some ranks, receive from some, in the order given; answered with {rank: payload}.

    Sizes are known to both sides; nothing is moved for a size of 0.
    """

    send: tuple[tuple[int, Tensor], ...]
    recv: tuple[tuple[int, int], ...]


def allreduce_nbytes(nbytes: int, world: int) -> float:
    """Bytes that each rank hands to the wire in a ring all-reduce (gloo's and NCCL's), on average over ranks: 2 (K-1)/K · M."""
    return 2 * (world - 1) * nbytes / world


Hop: TypeAlias = AllReduce | Exchange
Flight: TypeAlias = Generator[Hop, Any, Outcome]


class Route(Member, ABC):
    """How to carry it: drives `codec.rounds` and yields hops; never touches a process group. It may write into `x`."""

    kind: ClassVar[str] = "how"
    consensus: ClassVar[bool] = True
    """All ranks end with the same bits (gossip: no)."""

    def init(self, codec: Codec, spec: Spec, seat: Seat) -> State:
        """Fresh state of the codec (and of the route's own codecs) for the spans that this rank will encode."""
        return State(children={"codec": codec.init(spec, seat)})

    def groups(self, world: int) -> tuple[Ranks, ...]:
        """Subsets of ranks that it will all-reduce over; built once, at attach.

        Raises:
            StrategyError: it cannot serve a world of this size.
        """
        return ()

    def refuses(self, codec: Codec) -> str | None:
        """Why this codec cannot travel this route and what to do, or `None`."""
        return None

    @abstractmethod
    def carry(self, codec: Codec, x: Tensor, spec: Spec, state: State, seat: Seat) -> Flight:
        """The flight of `x` (spec.numel,), from this rank's side."""

    @abstractmethod
    def sent_nbytes(self, codec: Codec, spec: Spec, seat: Seat) -> float | None:
        """Bytes that this rank hands to the wire for one flight, in closed form; `None` where the data decides."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What happens at one step: which buckets to launch and to land, and whether launches go dense (identity, native)."""

    launch: Ranks = ()
    land: Ranks = ()
    dense: bool = False


class Schedule(Member, ABC):
    """When to talk: pure in the step, so ranks cannot disagree."""

    kind: ClassVar[str] = "when"

    @property
    @abstractmethod
    def period(self) -> int:
        """Steps from one launch of a bucket to its next, once any warm-up is over."""

    @property
    def gap(self) -> int:
        """The fewest steps between two launches of a bucket: 1 in a warm-up."""
        return self.period

    @property
    def delay(self) -> int:
        """Steps from a launch to its landing (tau)."""
        return 0

    @property
    def fragments(self) -> int:
        """Groups of buckets that launch at different steps."""
        return 1

    @property
    def depth(self) -> int:
        """The most flights of one bucket in the air at once."""
        return self.delay // self.gap + 1

    @abstractmethod
    def tick(self, step: int, buckets: int) -> Tick:
        """What to do at `step` (0, 1, …) with `buckets` buckets."""


class Bucket(Protocol):
    """A flat group of parameters, as the engine holds it."""

    @property
    def spec(self) -> Spec: ...
    def weights(self) -> Tensor:
        """A new flat copy of the parameters: (spec.numel,) spec.work."""

    def set_weights(self, flat: Tensor) -> None: ...
    def grads(self) -> Tensor:
        """The flat buffer that the hooks filled: (spec.numel,) spec.dtype, already scaled by this rank's weight."""

    def set_grads(self, flat: Tensor) -> None: ...


class Target(Member, ABC):
    """On which tensors."""

    kind: ClassVar[str] = "on"
    clock: ClassVar[Literal["backward", "step"]]
    """What a step is: a backward pass, or an optimiser step."""

    @property
    def mean(self) -> bool:
        """Contributions are scaled by their share of the weights, so the sum is the weighted mean; else they are summed as they are."""
        return True

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        """Why this schedule or codec does not fit this target and what to do, or `None`."""
        return None

    def init(self, bucket: Bucket) -> State:
        return State()

    @abstractmethod
    def read(self, bucket: Bucket, state: State, share: float) -> Tensor:
        """This rank's contribution times its share of the weights: (spec.numel,), handed over to the route."""

    @abstractmethod
    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        """Put the weighted mean where it belongs."""

    def common(self, bucket: Bucket, state: State) -> Tensor | None:
        """What every rank must hold equal: (spec.numel,); `None` where that is the parameters, but only just after a landing."""
        return bucket.weights()


class Outer(Member, ABC):
    """The optimiser that applies a mean pseudo-gradient to the anchor."""

    kind: ClassVar[str] = "outer"

    @abstractmethod
    def init(self, spec: Spec, anchor: Tensor) -> State: ...

    @abstractmethod
    def update(self, anchor: Tensor, delta: Tensor, state: State) -> Tensor:
        """The new anchor; `delta` points from the mean of the ranks' parameters to the old anchor, like a gradient."""


class Handle(Protocol):
    """A flight in the air."""

    @property
    def encode_s(self) -> float: ...
    @property
    def wire_s(self) -> float: ...
    @property
    def sent_bytes(self) -> float: ...
    def wait(self) -> Outcome:
        """The outcome, once landed.

        Raises:
            FlightError: it could not be carried; RankLostError names the ranks where it can.
        """


class Driver(Protocol):
    """The only thing that knows a network or a clock."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    def prepare(self, groups: tuple[Ranks, ...]) -> None:
        """Build the lanes, and what all-reduces over these subsets need; every rank calls it alike."""

    def at(self, label: str) -> None:
        """Where this rank stands, for the others to hear if a flight fails."""

    def start(self, flight: Flight, lane: int, label: str) -> Handle:
        """Put a flight on a lane: lanes run side by side, the flights of one lane one after another to completion."""

    def close(self) -> None:
        """Run what was started to its end, then stop."""

    def abandon(self) -> None:
        """Leave without waiting for flights that may never land; the others are told that this rank has left."""
