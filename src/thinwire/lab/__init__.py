"""Emulate hosts on one Linux machine: `with Lab(network) as lab: lab.run(command)`; see `thinwire
lab`. `thinwire.net` describes the network."""

from thinwire.lab.lab import Count, Lab
from thinwire.lab.running import Ran

__all__ = ["Count", "Lab", "Ran"]
