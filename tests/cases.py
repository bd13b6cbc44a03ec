"""Configured members, by name: what the conformance checks are run on. `test_pairs.py` proves that
no exported member is missing."""

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
from thinwire.what import (
    als,
    alternating,
    blockk,
    budget,
    by_rank,
    by_role,
    cast,
    clip,
    codebook,
    cp,
    dct,
    dgc,
    ef21,
    entropy,
    feedback,
    fp4,
    fp8,
    hadamard,
    identity,
    lattice,
    loglevels,
    lowrank,
    natural,
    nf4,
    on_change,
    powerlevels,
    randomk,
    sampled,
    scaled,
    sign,
    svd,
    tensortrain,
    ternary,
    threshold,
    topk,
    tucker,
    uniform,
)
from thinwire.when import by_speed, delayed, every, growing, staggered, thinning, warmup

CODECS: dict[str, list[Codec]] = {
    "identity": [identity()],
    "cast": [cast("bf16"), cast("fp16")],
    "uniform": [
        *(uniform(8), uniform(4, block=32), uniform(2, block=0), uniform(2, block=16, grid="rise")),
        *(
            uniform(4, rounding="stochastic"),
            uniform(2, block=5, grid="rise", rounding="stochastic"),
        ),
        *(
            uniform(5, "row"),
            uniform(1, 0, grid="rise"),
            uniform(1, 8, grid="rise", rounding="stochastic"),
            uniform(7, step=0.02),
        ),
        *(uniform(3, "row", grid="affine"), uniform(6, 16, grid="affine", rounding="stochastic")),
        *(
            uniform(4, scale="norm", rounding="stochastic"),
            uniform(3, scale="mse"),
            uniform(2, 0, scale="mse", grid="affine"),
        ),
        *(
            uniform(4, 0, scale="percentile", at=98.0),
            uniform(3, 32, scale="percentile", at=90.0, grid="affine"),
        ),
        *(uniform(3, 0, scale="sigma", at=2.5), uniform(8, scale="sigma", at=6.0, grid="affine")),
        uniform(3, scale="sigma", at=2.0, rounding="stochastic", grid="rise"),
        *(
            uniform(4, grid="point"),
            uniform(2, 0, "stochastic", grid="point"),
            uniform(3, "row", "stochastic", grid="point", scale="range"),
        ),
        *(
            uniform(8, 32, grid="point", scale="mse"),
            uniform(3, 0, "stochastic", grid="point", scale="percentile", at=90.0),
        ),
        *(uniform(8, step=0.05), uniform(2, step=0.5, rounding="stochastic")),
    ],
    "sign": [sign(block=0), sign(block=30), sign()],
    "fp8": [
        fp8("e5m2", block=0),
        fp8("e5m2", block=32, rounding="stochastic"),
        fp8(rounding="stochastic"),
        fp8(block=32),
    ],
    "fp4": [
        fp4("e3m0", block=32),
        fp4("e3m0", block=0, rounding="stochastic"),
        fp4(block=16, rounding="stochastic"),
        fp4(),
    ],
    "nf4": [nf4(block=0), nf4(rounding="stochastic"), nf4()],
    "natural": [natural("nearest"), natural()],
    "ternary": [
        ternary(block=0),
        ternary(block=16, clip=2.5),
        ternary(rounding="nearest"),
        ternary(),
    ],
    "loglevels": [
        *(
            loglevels(8, block=0),
            loglevels(2, 0.2, grid="rise"),
            loglevels(3, 0.1, block=12, rounding="stochastic"),
        ),
        *(loglevels(6, 1e-3, rounding="stochastic", grid="rise"), loglevels()),
    ],
    "powerlevels": [
        *(
            powerlevels(8, 3.0, 0),
            powerlevels(2, grid="rise"),
            powerlevels(3, 1.5, 12, "stochastic"),
        ),
        *(powerlevels(6, 4.0, 32, "stochastic", "rise"), powerlevels(4)),
    ],
    "scaled": [
        *(
            scaled(40, "nf4") >> nf4(0),
            scaled(16, "e3m0") >> fp4("e3m0", 0),
            scaled(0, "e5m2") >> fp8("e5m2", 0),
        ),
        *(
            scaled(16, 4) >> uniform(4, step=1 / 7),
            scaled(32, "cover") >> fp4("e2m1", 0, rounding="stochastic"),
            scaled(7, 2),
        ),
        *(
            scaled(0, "cover") >> uniform(3, 0, rounding="stochastic"),
            scaled(32) >> nf4(0),
            scaled(32, "cover"),
            scaled(16),
        ),
        *(
            scaled(16, 4, zero=True) >> uniform(4, 0, grid="rise"),
            scaled(9, "mean", zero=True, octave=64) >> cast("fp16"),
        ),
        *(
            scaled(32, "cover", zero=True, octave=32) >> uniform(3, 0, rounding="stochastic"),
            scaled(24, 8, octave=64),
            scaled(0, zero=True),
        ),
    ],
    "hadamard": [
        *(
            hadamard(64) >> uniform(4),
            hadamard(2) >> sign(8),
            hadamard(16) >> topk(4, per=16) >> fp8(),
            hadamard(8) >> hadamard(128),
        ),
        *(hadamard(128) >> uniform(2, 0, rounding="stochastic"), hadamard(32)),
    ],
    "topk": [topk(0.1), topk(5, per=64), topk(1)],
    "threshold": [threshold(0.3, of="max"), threshold(1.0, of="rms"), threshold(0.5)],
    "blockk": [blockk(0.1, block=8), blockk(3, block=7)],
    "budget": [
        *(
            budget(3.0, (0, 2, 4, 8), per=32, block=16),
            feedback(budget(1.5, (0, 2, 3, 4, 8), per=60, block=30)),
        ),
        *(
            budget(5.2, per=0, block=64),
            budget(4.0, rounding="stochastic", per=32, block=32),
            feedback(budget(3.0, per=64, block=64, every=3)),
        ),
        budget(2.5, (0, 2, 5), per=8, block=8, rounding="stochastic", every=2),
        budget(),
    ],
    "sampled": [sampled(0.3, stride=4), sampled(0.1)],
    "dgc": [dgc(topk(0.1)), dgc(topk(5, per=64) >> uniform(4), 0.5, mask=False), dgc(uniform(2))],
    "ef21": [ef21(topk(0.3)), ef21(lowrank(2)), ef21(uniform(2))],
    "on_change": [
        *(
            on_change(),
            on_change(uniform(4), xi=0.0),
            on_change(topk(0.3), 0.05, 2, longest=1),
            on_change(uniform(3), xi=9.0),
        ),
    ],
    "entropy": [
        *(
            entropy(identity()),
            entropy(cast("fp16")),
            entropy(uniform(4, rounding="stochastic")),
            entropy(threshold(1.0)),
        ),
        *(topk(5, per=64) >> entropy(identity()), entropy()),
    ],
    "randomk": [randomk(0.1), randomk(20, unbiased=True)],
    "lowrank": [lowrank(2)],
    "dct": [dct(8), feedback(dct(4) >> topk(5, per=16), decay=0.999), dct(4) >> uniform(4), dct(3)],
    "svd": [svd(2, exact=True), svd(1, oversample=4, iterations=0), svd(2) >> uniform(8), svd(2)],
    "als": [als(1, sweeps=1), als(2, ridge=0.1), als(2) >> uniform(8), als(2)],
    "alternating": [alternating(1), feedback(alternating(2)), alternating(2)],
    "lattice": [
        lattice(2, "D4", block=0),
        lattice(4, "D4", block=20),
        lattice(8, block=0),
        lattice(3, block=16, scale="mse"),
        lattice(4, block=32),
    ],
    "codebook": [
        codebook(4, 3, refresh=0),
        codebook(2, 2, stages=2, block=32, refresh=4),
        codebook(2, 2, block=8, refresh=3),
    ],
    "tucker": [tucker(0.5), tucker(0.2, fold=3), tucker(0.25, fold=2) >> uniform(8), tucker(0.3)],
    "cp": [cp(1, sweeps=1), cp(2, fold=3, ridge=0.0), cp(2, fold=2) >> uniform(8), cp(2)],
    "tensortrain": [
        tensortrain(1),
        tensortrain(2, fold=3),
        tensortrain(2, fold=2) >> uniform(8),
        tensortrain(2),
    ],
    "chain": [
        *(
            topk(5, per=64) >> uniform(2, grid="rise"),
            threshold(1.0) >> cast(),
            topk(0.2) >> threshold(0.1),
        ),
        *(
            randomk(0.5, unbiased=True) >> uniform(4, rounding="stochastic"),
            topk(0.5) >> randomk(0.5) >> cast(),
        ),
    ],
    "feedback": [
        *(
            feedback(uniform(2)),
            feedback(topk(0.05), decay=0.9),
            feedback(lowrank(2)),
            feedback(threshold(1.0)),
            feedback(cast("fp16")),
        ),
        *(
            feedback(topk(0.1), decay=0.5, store="bf16"),
            feedback(topk(0.05), store="int8"),
            feedback(uniform(3), start=1, ramp=3),
        ),
        feedback(topk(0.2), decay=0.9, store="int8", reset=2),
        feedback(by_role(matrix=lowrank(2), embedding=cast(), vector=uniform(4))),
    ],
    "clip": [
        *(
            clip(identity(), norm=2.0),
            clip(feedback(topk(0.1)), times=0.5, window=2, per="span"),
            clip(lowrank(2), times=1.0, window=1),
        ),
        *(
            clip(dgc(topk(0.1)), norm=2.0),
            feedback(clip(topk(0.2), norm=3.0)),
            ef21(clip(cast(), norm=5.0)),
        ),
        *(by_role(matrix=clip(feedback(uniform(2)), norm=4.0)), clip(uniform(4), norm=3.0)),
    ],
    "by_rank": [  # rank 0 loses most, as route checks take it for all
        by_rank(
            (
                topk(5, per=64),
                topk(0.2),
                uniform(2),
                fp8(),
                identity(),
                topk(5, per=64) >> uniform(4),
                uniform(3),
                cast(),
                cast(),
            )
        ),
        by_rank(
            (
                uniform(2),
                uniform(4),
                identity(),
                uniform(2, block=64),
                cast(),
                uniform(3),
                uniform(4),
                uniform(2),
                cast(),
                cast(),
            )
        ),
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
        parameters(outer=sgd(0.7, 0.5), store="bf16", place="cpu"),
    ],
    "momentum": [momentum(), momentum((0.8, 0.95), 1e-6), momentum(bound=None)],
    "deltas": [
        deltas(),
        deltas(outer=sgd(), alpha=0.5),
        deltas(eager=True, store="bf16", place="cpu"),
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
        *(feedback(codec, decay=0.9) for codec in bare if codec.lossy),
        *(topk(0.5) >> codec for codec in bare if isinstance(codec, Coder)),
        *(by_role(matrix=codec, vector=cast()) for codec in bare),
        *(
            codec
            for name in ("chain", "feedback", "dgc", "ef21", "on_change", "by_role")
            for codec in CODECS[name]
        ),
    ]
