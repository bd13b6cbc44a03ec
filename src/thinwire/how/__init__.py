"""How to carry it: routes, as generators that yield hops and never touch a process group.

Payloads that may be added: `native()`. Two ranks, or sparse payloads: `gather()`. Three and more ranks and a dense codec: `two_shot()`.
Nodes with a fast wire inside and a thin one between: `hierarchical(native(), two_shot(), node=8)`.
"""

from thinwire.how.gather import gather
from thinwire.how.hierarchical import hierarchical
from thinwire.how.native import native
from thinwire.how.two_shot import two_shot

__all__ = ["gather", "hierarchical", "native", "two_shot"]
