"""Configured members, by name: what the conformance checks are run on. `test_pairs.py` proves that no exported member is missing."""

from thinwire.core import Codec, Coder, Outer, Route, Schedule, Target
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, nesterov, parameters, sgd
from thinwire.what import by_role, cast, feedback, identity, lowrank, randomk, threshold, topk, uniform
from thinwire.when import delayed, every, staggered, warmup

CODECS: dict[str, list[Codec]] = {
    "identity": [identity()],
    "cast": [cast("bf16"), cast("fp16")],
    "uniform": [
        *(uniform(8), uniform(4, block=32), uniform(2, block=0), uniform(2, block=16, grid="rise")),
        *(uniform(4, rounding="stochastic"), uniform(2, block=5, grid="rise", rounding="stochastic")),
        *(uniform(8, step=0.05), uniform(2, step=0.5, rounding="stochastic")),
    ],
    "topk": [topk(0.1), topk(5, per=64), topk(1)],
    "threshold": [threshold(0.5)],
    "randomk": [randomk(0.1), randomk(20, unbiased=True)],
    "lowrank": [lowrank(2)],
    "chain": [
        *(topk(5, per=64) >> uniform(2, grid="rise"), threshold(1.0) >> cast(), topk(0.2) >> threshold(0.1)),
        *(randomk(0.5, unbiased=True) >> uniform(4, rounding="stochastic"), topk(0.5) >> randomk(0.5) >> cast()),
    ],
    "feedback": [
        *(feedback(uniform(2)), feedback(topk(0.05), decay=0.9), feedback(lowrank(2)), feedback(threshold(1.0)), feedback(cast("fp16"))),
        feedback(by_role(matrix=lowrank(2), embedding=cast(), vector=uniform(4))),
    ],
    "by_role": [
        by_role(matrix=lowrank(2), embedding=cast()),
        by_role(matrix=feedback(topk(0.1)), embedding=threshold(1.0), vector=feedback(uniform(2))),
        by_role(matrix=feedback(lowrank(2)), vector=randomk(0.5)),
    ],
}

ROUTES: dict[str, list[Route]] = {
    "native": [native()],
    "gather": [gather()],
    "two_shot": [two_shot(), two_shot(back=feedback(uniform(8))), two_shot(back=identity())],
    "hierarchical": [
        hierarchical(native(), two_shot(), node=2),
        hierarchical((two_shot(), cast()), gather(), node=2),
        hierarchical((gather(), identity()), native(), node=2),
    ],
}

SCHEDULES: dict[str, list[Schedule]] = {
    "every": [every(), every(4)],
    "delayed": [delayed(0, every(2)), delayed(2, every(1)), delayed(5, every(3)), delayed(3, staggered(4, every(10)))],
    "staggered": [staggered(1, every(1)), staggered(3, every(7)), staggered(5, every(5))],
    "warmup": [
        warmup(0, every(3)),
        warmup(3, every(1)),
        warmup(4, every(3)),
        delayed(2, warmup(3, every(4))),
        warmup(2, staggered(2, every(4))),
    ],
}

TARGETS: dict[str, list[Target]] = {
    "gradients": [gradients(), gradients(reduce="sum")],
    "parameters": [parameters()],
    "deltas": [deltas(), deltas(outer=sgd(), alpha=0.5)],
}

OUTERS: dict[str, list[Outer]] = {
    "sgd": [sgd(), sgd(0.3, momentum=0.9)],
    "nesterov": [nesterov(), nesterov(0.4, 0.5)],
}


def combined() -> list[Codec]:
    """One bare codec of each member, and it in feedback, in a chain and in `by_role` wherever it fits; then the handpicked ones."""
    bare = [CODECS[name][-1] for name in CODECS if name not in ("chain", "feedback", "by_role")]
    return [
        *bare,
        *(feedback(codec, decay=0.9) for codec in bare if codec.lossy),
        *(topk(0.5) >> codec for codec in bare if isinstance(codec, Coder)),
        *(by_role(matrix=codec, vector=cast()) for codec in bare),
        *(codec for name in ("chain", "feedback", "by_role") for codec in CODECS[name]),
    ]
