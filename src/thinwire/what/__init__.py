"""What to say: codecs. Frozen configurations; their state lives in the engine, their payloads are
bytes.

`feedback(topk(64, per=4096) >> uniform(bits=2, grid="rise"), decay=0.95)` is SparseLoCo's;
`feedback(lowrank(4))` is PowerSGD; `by_role(matrix=feedback(lowrank(4)), embedding=cast("bf16"))`
says each role in its own way.
"""

from thinwire.what.lowrank.als import als
from thinwire.what.lowrank.alternating import alternating
from thinwire.what.lowrank.cp import cp
from thinwire.what.lowrank.lowrank import lowrank
from thinwire.what.lowrank.svd import svd
from thinwire.what.lowrank.tensortrain import tensortrain
from thinwire.what.lowrank.tucker import tucker
from thinwire.what.scalar.budget import budget
from thinwire.what.scalar.cast import cast
from thinwire.what.scalar.fp4 import fp4
from thinwire.what.scalar.fp8 import fp8
from thinwire.what.scalar.identity import identity
from thinwire.what.scalar.loglevels import loglevels
from thinwire.what.scalar.natural import natural
from thinwire.what.scalar.nf4 import nf4
from thinwire.what.scalar.powerlevels import powerlevels
from thinwire.what.scalar.scaled import scaled
from thinwire.what.scalar.sign import sign
from thinwire.what.scalar.ternary import ternary
from thinwire.what.scalar.uniform import uniform
from thinwire.what.sparse.blockk import blockk
from thinwire.what.sparse.randomk import randomk
from thinwire.what.sparse.sampled import sampled
from thinwire.what.sparse.threshold import threshold
from thinwire.what.sparse.topk import topk
from thinwire.what.vector.codebook import codebook
from thinwire.what.vector.dct import dct
from thinwire.what.vector.hadamard import hadamard
from thinwire.what.vector.lattice import lattice
from thinwire.what.wrap.by_rank import by_rank
from thinwire.what.wrap.by_role import by_role
from thinwire.what.wrap.chain import Transform, chain
from thinwire.what.wrap.clip import clip
from thinwire.what.wrap.dgc import dgc
from thinwire.what.wrap.ef21 import ef21
from thinwire.what.wrap.entropy import entropy
from thinwire.what.wrap.feedback import feedback
from thinwire.what.wrap.on_change import on_change

__all__ = [
    "Transform",
    "als",
    "alternating",
    "blockk",
    "budget",
    "by_rank",
    "by_role",
    "cast",
    "chain",
    "clip",
    "codebook",
    "cp",
    "dct",
    "dgc",
    "ef21",
    "entropy",
    "feedback",
    "fp4",
    "fp8",
    "hadamard",
    "identity",
    "lattice",
    "loglevels",
    "lowrank",
    "natural",
    "nf4",
    "on_change",
    "powerlevels",
    "randomk",
    "sampled",
    "scaled",
    "sign",
    "svd",
    "tensortrain",
    "ternary",
    "threshold",
    "topk",
    "tucker",
    "uniform",
]
