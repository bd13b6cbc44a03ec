"""Emulated hosts on one Linux machine: `with Lab(network) as lab: lab.run(command)`; see `thinwire
lab`."""

from thinwire.lab.file import network_of, read, table_of
from thinwire.lab.lab import Count, Lab
from thinwire.lab.network import Change, Host, Link, Network, Pair, Wire, two_level, uniform
from thinwire.lab.running import Ran

__all__ = [
    "Change",
    "Count",
    "Host",
    "Lab",
    "Link",
    "Network",
    "Pair",
    "Ran",
    "Wire",
    "network_of",
    "read",
    "table_of",
    "two_level",
    "uniform",
]
