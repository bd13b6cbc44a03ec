"""Describe networks: hosts, switches, and the rate, latency, jitter and loss between them.

One description serves all: the lab emulates it, the simulator runs on it, the bench sweeps it, the
probe measures one, and `Network.between` gives the alpha-beta view that cost formulas take.
"""

from thinwire.net.file import network_of, read, table_of
from thinwire.net.link import Link, Transport
from thinwire.net.network import Network
from thinwire.net.parts import Change, Host, Pair, Trunk, Wire
from thinwire.net.shapes import LOCAL_NETWORK, two_level, uniform

__all__ = [
    "LOCAL_NETWORK",
    "Change",
    "Host",
    "Link",
    "Network",
    "Pair",
    "Transport",
    "Trunk",
    "Wire",
    "network_of",
    "read",
    "table_of",
    "two_level",
    "uniform",
]
