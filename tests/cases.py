"""Configured components, by name, on which the conformance checks run.

Codecs state theirs as `examples` on the class. `test_pairs.py` proves that no exported component is
missing.
"""

import inspect

from thinwire import what
from thinwire.core import Codec, Coder, Outer, Route, Schedule, Target
from thinwire.how import (
    auto,
    checked,
    direct,
    gather,
    gossip,
    halving_doubling,
    hierarchical,
    native,
    ring,
    server,
    torus,
    tree,
    two_shot,
)
from thinwire.on import deltas, gradients, momentum, nesterov, optim, parameters, sgd
from thinwire.strategy.reading import spelled
from thinwire.what import by_role, cast, feedback, identity, topk, uniform
from thinwire.when import by_speed, delayed, every, growing, staggered, thinning, warmup


def codec_classes() -> dict[str, type[Codec]]:
    """List the codecs that `thinwire.what` exports, by name."""
    exported = {name: getattr(what, name) for name in what.__all__}
    return {name: cls for name, cls in exported.items() if not inspect.isabstract(cls)}


CODECS: dict[str, list[Codec]] = {
    name: [spelled("what", code) for code in cls.examples] for name, cls in codec_classes().items()
}

ROUTES: dict[str, list[Route]] = {
    "native": [native()],
    "gather": [gather()],
    "two_shot": [two_shot(), two_shot(back=feedback(uniform(8))), two_shot(back=identity())],
    "hierarchical": [
        hierarchical(native(), two_shot(), node=2),
        hierarchical((two_shot(), cast()), gather(), node=2),
        hierarchical((gather(), identity()), native(), node=2),
        hierarchical(native(), hierarchical((ring(), identity()), tree(1), node=2), node=2),
    ],
    "direct": [direct()],
    "ring": [ring()],
    "tree": [tree(2)],
    "halving_doubling": [halving_doubling()],
    "torus": [torus(2, 2)],
    "server": [server((1, 0)), server((2,), back=feedback(uniform(8)))],
    "gossip": [gossip(), gossip("ring")],
    "checked": [checked(two_shot())],
    "auto": [auto(latency_s=0.05, losses=9), auto(routes=(server((0, 1)), gather()))],
}

SCHEDULES: dict[str, list[Schedule]] = {
    "every": [every(), every(4), every(4, phase=0), every(5, phase=2)],
    "delayed": [
        delayed(0, every(2)),
        delayed(2, every(1)),
        delayed(5, every(3)),
        delayed(3, staggered(4, every(10))),
        delayed(2, every(4, phase=1)),
    ],
    "staggered": [
        staggered(1, every(1)),
        staggered(3, every(7)),
        staggered(5, every(5)),
        staggered(3, every(7, phase=2)),
    ],
    "growing": [
        growing(1, 8),
        growing(3, 7, rounds=2, factor=1.3),
        growing(2, 5, rounds=3, factor=9.5),
    ],
    "thinning": [
        thinning(30, every(1), kappa=3),
        thinning(1, every(1)),
        thinning(9, every(), kappa=1),
    ],
    "by_speed": [
        by_speed(every(4)),
        by_speed(delayed(2, staggered(2, every(5)))),
        by_speed(warmup(3, growing(1, 4))),
    ],
    "warmup": [
        warmup(2, growing(1, 3)),
        delayed(1, warmup(2, growing(2, 3))),
        warmup(0, every(3)),
        warmup(3, every(1)),
        warmup(4, every(3)),
        delayed(2, warmup(3, every(4))),
        warmup(2, staggered(2, every(4))),
        warmup(3, every(4, phase=0)),
        delayed(1, warmup(2, staggered(2, every(6, phase=3)))),
    ],
}

TARGETS: dict[str, list[Target]] = {
    "gradients": [
        gradients(),
        gradients(reduce="sum"),
        gradients(then="sign"),
        gradients(compensate=0.5),
    ],
    "parameters": [
        parameters(),
        parameters(outer=nesterov(0.7, 0.5), pull=0.5),
        parameters(outer=sgd(0.7, 0.5), store="bf16", device="cpu"),
    ],
    "momentum": [momentum(), momentum((0.8, 0.95), 1e-6), momentum(bound=None)],
    "deltas": [
        deltas(),
        deltas(outer=sgd(), alpha=0.5),
        deltas(eager=True, store="bf16", device="cpu"),
    ],
}

OUTERS: dict[str, list[Outer]] = {
    "sgd": [sgd(), sgd(0.3, momentum=0.9)],
    "nesterov": [nesterov(), nesterov(0.4, 0.5)],
    "optim": [optim("AdamW", "lr=0.1, betas=(0.9, 0.95)"), optim("SGD")],
}


def combined() -> list[Codec]:
    """One bare codec of each member, and it in feedback, in a chain and in `by_role` wherever it
    fits; then the handpicked ones."""
    bare = [
        CODECS[name][-1]
        for name in CODECS
        if name not in ("chain", "feedback", "dgc", "ef21", "on_change", "by_role")
    ]
    return [
        *bare,
        *(feedback(codec, decay=0.9) for codec in bare if codec.traits.lossy),
        *(
            topk(0.5) >> codec
            for codec in bare
            if isinstance(codec, Coder) and not codec.traits.needs_base
        ),
        *(by_role(matrix=codec, vector=cast()) for codec in bare),
        *(
            codec
            for name in ("chain", "feedback", "dgc", "ef21", "on_change", "by_role")
            for codec in CODECS[name]
        ),
    ]
