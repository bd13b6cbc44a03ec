"""What to say: codecs. Frozen configurations; their state lives in the engine, their payloads are
bytes.

`feedback(topk(64, per=4096) >> uniform(bits=2, grid="rise"), decay=0.95)` is SparseLoCo's;
`feedback(lowrank(4))` is PowerSGD; `by_role(matrix=feedback(lowrank(4)), embedding=cast("bf16"))`
says each role in its own way.
"""

from thinwire.what.als import als
from thinwire.what.alternating import alternating
from thinwire.what.blockk import blockk
from thinwire.what.budget import budget
from thinwire.what.by_rank import by_rank
from thinwire.what.by_role import by_role
from thinwire.what.cast import cast
from thinwire.what.chain import Transform, chain
from thinwire.what.clip import clip
from thinwire.what.codebook import codebook
from thinwire.what.cp import cp
from thinwire.what.dct import dct
from thinwire.what.dgc import dgc
from thinwire.what.ef21 import ef21
from thinwire.what.entropy import entropy
from thinwire.what.feedback import feedback
from thinwire.what.fp4 import fp4
from thinwire.what.fp8 import fp8
from thinwire.what.hadamard import hadamard
from thinwire.what.identity import identity
from thinwire.what.lattice import lattice
from thinwire.what.loglevels import loglevels
from thinwire.what.lowrank import lowrank
from thinwire.what.natural import natural
from thinwire.what.nf4 import nf4
from thinwire.what.on_change import on_change
from thinwire.what.powerlevels import powerlevels
from thinwire.what.randomk import randomk
from thinwire.what.sampled import sampled
from thinwire.what.scaled import scaled
from thinwire.what.sign import sign
from thinwire.what.svd import svd
from thinwire.what.tensortrain import tensortrain
from thinwire.what.ternary import ternary
from thinwire.what.threshold import threshold
from thinwire.what.topk import topk
from thinwire.what.tucker import tucker
from thinwire.what.uniform import uniform

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
