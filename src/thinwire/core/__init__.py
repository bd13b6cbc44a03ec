"""Define the terms of this library: bucket, packet, hop, codec, route, schedule, target, driver.

Code that decides is a generator that yields what it wants moved; code that touches a network or a
clock is a small driver. A codec yields a `Packet` and is sent back the *sum over ranks of what
those packets decode to*; a route drives the codec and yields `Hop`s; a driver moves them. So
PowerSGD (two packets, the second made from the answer to the first) and 8-bit rounding (one packet)
travel every route, on a cluster and in a test alike.

Routes **sum**. The engine scales each rank's contribution by its weight over the sum of weights
beforehand, so a sum is the weighted mean, and residuals (in the same units) may be added over ranks
and handed to another world.
"""

from thinwire.core.codec import (
    Codec,
    Coder,
    EncodedWithResidual,
    Outcome,
    Packet,
    Rounds,
    Sectioned,
    Traits,
    check_nbytes,
    encode_packet,
    needs_input_later,
    side_by_side,
)
from thinwire.core.driver import Driver, Handle, Stage
from thinwire.core.route import (
    AllReduce,
    Cost,
    Exchange,
    Flight,
    Hop,
    Route,
    allreduce_messages,
    allreduce_nbytes,
)
from thinwire.core.schedule import Schedule, Tick
from thinwire.core.spec import Extent, Grain, Part, RankContext, Ranks, Role, Spec
from thinwire.core.state import Form, Kind, Leaf, State
from thinwire.core.target import Bucket, Outer, Target
from thinwire.net.link import Link, Transport

__all__ = [
    "AllReduce",
    "Bucket",
    "Codec",
    "Coder",
    "Cost",
    "Driver",
    "EncodedWithResidual",
    "Exchange",
    "Extent",
    "Flight",
    "Form",
    "Grain",
    "Handle",
    "Hop",
    "Kind",
    "Leaf",
    "Link",
    "Outcome",
    "Outer",
    "Packet",
    "Part",
    "RankContext",
    "Ranks",
    "Role",
    "Rounds",
    "Route",
    "Schedule",
    "Sectioned",
    "Spec",
    "Stage",
    "State",
    "Target",
    "Tick",
    "Traits",
    "Transport",
    "allreduce_messages",
    "allreduce_nbytes",
    "check_nbytes",
    "encode_packet",
    "needs_input_later",
    "side_by_side",
]
