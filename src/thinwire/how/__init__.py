"""Carry payloads by routes: generators that yield hops and never touch a process group.

Payloads that may be added: `native()`, or `direct()` over long links. Two ranks, or sparse
payloads: `gather()`. Three and more ranks and a dense codec: `two_shot()`. Nodes with a fast wire
inside and a thin one between: `hierarchical(native(), two_shot(), node=8)`. `auto()` reckons which
is fastest.
"""

from thinwire.how.auto import auto
from thinwire.how.checked import checked
from thinwire.how.direct import direct
from thinwire.how.gather import gather
from thinwire.how.gossip import gossip
from thinwire.how.halving_doubling import halving_doubling
from thinwire.how.hierarchical import hierarchical
from thinwire.how.native import native
from thinwire.how.ring import ring
from thinwire.how.server import server
from thinwire.how.torus import torus
from thinwire.how.tree import tree
from thinwire.how.two_shot import two_shot

__all__ = [
    "auto",
    "checked",
    "direct",
    "gather",
    "gossip",
    "halving_doubling",
    "hierarchical",
    "native",
    "ring",
    "server",
    "torus",
    "tree",
    "two_shot",
]
