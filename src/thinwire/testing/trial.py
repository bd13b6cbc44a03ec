"""Try a codec or a route on ranks of one process, with no network and no training loop.

`draw` makes a tensor of normal values. `round_trip` encodes one tensor and decodes it again.
`Trial` carries the tensors of several ranks over a route, step after step, and keeps the state
between steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.core import Codec, Flight, Outcome, Part, RankContext, Role, Route, Spec
from thinwire.drive.local import run
from thinwire.errors import PayloadError

__all__ = ["RoundTrip", "Trial", "draw", "flatten", "round_trip"]


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What one rank alone sends of a tensor, and what it decodes to.

    nbytes: of all packets. value: flat. error: ||value - x|| / ||x||.
    """

    nbytes: int
    value: Tensor
    error: float

    def __str__(self) -> str:
        return f"{self.nbytes} bytes, error {self.error:.3f}"


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw independent normal values; the same shape and seed give the same tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flatten(tensors: Tensor | Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Spec:
    """Describe one tensor, or several by name, as the parameters of one flat bucket.

    A name with "embed" in it is an embedding, another tensor of two dimensions or more a matrix.

    Example:
        >>> flatten({"w": torch.ones(3, 2), "b": torch.ones(3)}).numel
        9
    """
    named = {"x": tensors} if isinstance(tensors, Tensor) else tensors
    parts, begin = [], 0
    for name, tensor in named.items():
        matrix: Role = "embedding" if "embed" in name else "matrix"
        parts.append(
            Part(name, tuple(tensor.shape), begin, matrix if tensor.dim() > 1 else "vector")
        )
        begin += tensor.numel()
    return Spec(tuple(parts), begin=0, numel=begin, dtype=dtype)


def round_trip(codec: Codec, tensors: Tensor | Mapping[str, Tensor], step: int = 0) -> RoundTrip:
    """Encode tensors as one rank alone would, in fresh state, and decode the payloads.

    Args:
        codec: any codec, of one round or of several.
        tensors: one tensor, or several by name; each is a parameter.
        step: a codec that draws random numbers draws others at another step.

    Raises:
        PayloadError: the codec sends no packet, or its own payload does not decode.

    Example:
        >>> from thinwire.what import uniform
        >>> print(round_trip(uniform(8), draw(1000)))
        1016 bytes, error 0.008
    """
    named = {"x": tensors} if isinstance(tensors, Tensor) else tensors
    spec, ctx = flatten(named), RankContext(rank=0, group=(0,), step=step, seed=0)
    x = torch.cat([tensor.detach().reshape(-1).float() for tensor in named.values()])
    # With one rank a packet's sum is what it opens to.
    rounds, nbytes = codec.rounds(x.clone(), spec, codec.init(spec, ctx), ctx), 0
    try:
        packet = next(rounds)
        while True:
            nbytes += packet.payload.numel()
            packet = rounds.send(packet.open(packet.payload.clone(), ctx.rank))
    except StopIteration as stop:
        value: Tensor = stop.value.total
    if not nbytes and codec.nbytes(spec):
        raise PayloadError(f"{codec!r} sent no packet")
    error = (value.double() - x.double()).norm() / x.double().norm()
    return RoundTrip(nbytes, value, float(error))


class Trial:
    """Ranks of one process that carry the same parameters by one codec over one route.

    State stays from one call of `sum` to the next, so residuals, warm starts and thresholds act as
    they do in training. `step` counts the calls, `sent` the bytes out of each rank, `error` is
    ||total - exact sum|| / ||exact sum|| of the latest call, on rank 0.

    Args:
        route: how to carry it, such as `gather()`.
        codec: what to send, such as `feedback(topk(0.01))`.
        like: a tensor with the shape of the parameter, or several tensors by name.
        world: how many ranks.

    Example:
        >>> from thinwire.how import gather
        >>> from thinwire.what import uniform
        >>> trial = Trial(gather(), uniform(8), torch.ones(1000), world=2)
        >>> totals = trial.sum([torch.ones(1000), torch.ones(1000)])
        >>> trial.sent[0], trial.error < 1e-6
        (1016.0, True)
    """

    def __init__(
        self, route: Route, codec: Codec, like: Tensor | Mapping[str, Tensor], world: int
    ) -> None:
        self.route, self.codec, self.spec = route, codec, flatten(like)
        self.ranks = tuple(range(world))
        self.step = 0
        self.error = 0.0
        self.sent = dict.fromkeys(self.ranks, 0.0)
        self.states = {rank: route.init(codec, self.spec, self.ctx(rank)) for rank in self.ranks}

    def ctx(self, rank: int) -> RankContext:
        """Return the context of a rank at the present step."""
        return RankContext(rank, self.ranks, self.step, seed=0)

    def flights(self, xs: Sequence[Tensor]) -> dict[int, Flight[Outcome]]:
        """Build the flight of each rank, for a driver that you run yourself."""
        return {
            rank: self.route.carry(
                self.codec, x.reshape(-1).clone(), self.spec, self.states[rank], self.ctx(rank)
            )
            for rank, x in zip(self.ranks, xs, strict=True)
        }

    def sum(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Carry one tensor a rank; return the total that each rank ends with, flat."""
        outcomes = run(self.flights(xs), self.sent)
        self.step += 1
        exact = torch.stack([x.reshape(-1).double() for x in xs]).sum(0)
        self.error = float((outcomes[0].total - exact).norm() / exact.norm())
        return [outcomes[rank].total for rank in self.ranks]
