"""Choose what to send: codecs. Frozen configurations; their state lives in the engine, their
payloads are bytes.

`feedback(topk(64, per=4096) >> uniform(bits=2, grid="rise"), decay=0.95)` is SparseLoCo's;
`feedback(lowrank(4))` is PowerSGD; `by_role(matrix=feedback(lowrank(4)), embedding=cast("bf16"))`
says each role in its own way.
"""

from thinwire.core import Codec as _Codec
from thinwire.what.lowrank.als import als as als
from thinwire.what.lowrank.alternating import alternating as alternating
from thinwire.what.lowrank.cp import cp as cp
from thinwire.what.lowrank.lowrank import lowrank as lowrank
from thinwire.what.lowrank.svd import svd as svd
from thinwire.what.lowrank.tensortrain import tensortrain as tensortrain
from thinwire.what.lowrank.tucker import tucker as tucker
from thinwire.what.scalar.budget import budget as budget
from thinwire.what.scalar.cast import cast as cast
from thinwire.what.scalar.fp4 import fp4 as fp4
from thinwire.what.scalar.fp8 import fp8 as fp8
from thinwire.what.scalar.identity import identity as identity
from thinwire.what.scalar.loglevels import loglevels as loglevels
from thinwire.what.scalar.natural import natural as natural
from thinwire.what.scalar.nf4 import nf4 as nf4
from thinwire.what.scalar.powerlevels import powerlevels as powerlevels
from thinwire.what.scalar.scaled import scaled as scaled
from thinwire.what.scalar.sign import sign as sign
from thinwire.what.scalar.ternary import ternary as ternary
from thinwire.what.scalar.uniform import uniform as uniform
from thinwire.what.sparse.blockk import blockk as blockk
from thinwire.what.sparse.randomk import randomk as randomk
from thinwire.what.sparse.sampled import sampled as sampled
from thinwire.what.sparse.threshold import threshold as threshold
from thinwire.what.sparse.topk import topk as topk
from thinwire.what.sparse.visible import visible as visible
from thinwire.what.vector.codebook import codebook as codebook
from thinwire.what.vector.dct import dct as dct
from thinwire.what.vector.hadamard import hadamard as hadamard
from thinwire.what.vector.lattice import lattice as lattice
from thinwire.what.wrap.by_rank import by_rank as by_rank
from thinwire.what.wrap.by_role import by_role as by_role
from thinwire.what.wrap.chain import Transform as Transform
from thinwire.what.wrap.chain import chain as chain
from thinwire.what.wrap.clip import clip as clip
from thinwire.what.wrap.dgc import dgc as dgc
from thinwire.what.wrap.ef21 import ef21 as ef21
from thinwire.what.wrap.entropy import entropy as entropy
from thinwire.what.wrap.feedback import feedback as feedback
from thinwire.what.wrap.on_change import on_change as on_change

__all__ = [
    name
    for name, value in sorted(globals().items())
    if isinstance(value, type) and issubclass(value, _Codec) and value is not _Codec
]
