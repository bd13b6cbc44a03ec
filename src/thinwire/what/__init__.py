"""What to say: codecs. Frozen configurations; their state lives in the engine, their payloads are bytes.

`feedback(topk(64, per=4096) >> uniform(bits=2, grid="rise"), decay=0.95)` is SparseLoCo's; `feedback(lowrank(4))` is PowerSGD;
`by_role(matrix=feedback(lowrank(4)), embedding=cast("bf16"))` says each role in its own way.
"""

from thinwire.what.by_role import by_role
from thinwire.what.cast import cast
from thinwire.what.chain import Transform, chain
from thinwire.what.feedback import feedback
from thinwire.what.identity import identity
from thinwire.what.lowrank import lowrank
from thinwire.what.randomk import randomk
from thinwire.what.threshold import threshold
from thinwire.what.topk import topk
from thinwire.what.uniform import uniform

__all__ = ["Transform", "by_role", "cast", "chain", "feedback", "identity", "lowrank", "randomk", "threshold", "topk", "uniform"]
