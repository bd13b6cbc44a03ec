"""Run N ranks in one process on a simulated network: the same flights, a virtual clock, no waiting.

Messages are as the torch driver sends them. All receives of an exchange are posted, then its sends
go out one at a time in the order given, each once the one before has left. The exchange ends when
the last send has left and the last receive is there.

A message holds its sender for `message_s`. Then its bytes leave at the rate that it gets of the
ways that it shares with others (max-min fairness), and it is there `latency_s` after the last of
them has left. Where the transport `waits` (gloo), it begins when its receiver's word that it is
ready is there. The transport's own all-reduce is a ring. Encoding takes no time, or what `think`
gives.

Not modelled: TCP's slow start and losses, a receiver's buffers, processors that are busy. The lab
has those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from thinwire.core import Flight
from thinwire.drive._report import Event, Launch, Report
from thinwire.drive._simulation import Simulation, Think
from thinwire.drive._wires import Wires
from thinwire.drive.local import Fabric
from thinwire.net import Network, Transport

__all__ = ["Event", "Launch", "Report", "SimFabric", "simulate"]

T = TypeVar("T")


def simulate(
    flights: Mapping[int, Flight[Any]] | Sequence[Sequence[Launch]],
    network: Network,
    transport: Transport = Transport(),
    think: Think | None = None,
) -> Report:
    """Run flights on a virtual clock and report their seconds, bytes and outcomes.

    Args:
        flights: {rank: generator}; or for each lane its launches: those of one lane run one after
            another, lanes side by side.
        network: rank r is on its r-th host.
        transport: how messages use a link.
        think: how long a rank computes between hops.

    Raises:
        FlightError: the ranks wait for something that nobody sends, or send what nobody takes, or
            sizes do not match; the message names the ranks.
        NetworkError: a rank has no host.

    Example:
        >>> import torch
        >>> from thinwire.core import RankContext, Spec
        >>> from thinwire.how import gather
        >>> from thinwire.net import Wire, uniform
        >>> from thinwire.what import identity
        >>> spec, world = Spec((), 0, 250, torch.float32), (0, 1, 2)
        >>> def flight(rank):
        ...     ctx, x = RankContext(rank, world, 0, 0), torch.ones(250)
        ...     state = gather().init(identity(), spec, ctx)
        ...     return gather().carry(identity(), x, spec, state, ctx)
        >>> network = uniform(3, bits_per_s=8000, wire=Wire(latency_s=0.1))
        >>> report = simulate({rank: flight(rank) for rank in world}, network)
        >>> round(report.seconds, 6), report.sent_bytes[0], report.messages[0]
        (2.1, 2000.0, 2)
    """
    lanes = [[Launch(flights)]] if isinstance(flights, Mapping) else flights
    return Simulation(lanes, Wires(network, transport), think).run()


class SimFabric(Fabric):
    """A `Fabric` on a simulated network: each of N threads has a driver on it.

    Each flight is simulated by itself, from its start on all ranks; its `wire_s` is in virtual
    seconds. `clock_s` is, for each lane, the sum of its flights' so far.
    """

    def __init__(
        self,
        world: int,
        network: Network,
        transport: Transport = Transport(),
        timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        super().__init__(world, timeout)
        self.network, self.transport = network, transport
        self.clock_s: dict[int, float] = {}

    def carry(
        self,
        flights: Mapping[int, Flight[T]],
        sent: dict[int, float],
        seconds: dict[int, float],
        lane: int,
    ) -> dict[int, T]:
        """Simulate one flight of all ranks; note what each has sent and how long it took."""
        report = simulate(flights, self.network, self.transport)
        sent.update(report.sent_bytes)
        seconds.update(report.ends)
        self.clock_s[lane] = self.clock_s.get(lane, 0.0) + report.seconds
        return report.outcome
