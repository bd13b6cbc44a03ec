"""Emulate hosts on one Linux machine: `with Lab(network) as lab: lab.run(command)`; see `thinwire
lab`. `thinwire.net` describes the network."""

from thinwire.lab.counts import Count
from thinwire.lab.lab import Lab
from thinwire.lab.running import Ran

__all__ = ["Count", "Lab", "Ran"]
