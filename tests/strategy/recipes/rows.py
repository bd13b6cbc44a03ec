"""The rows that recipes are, by name."""

from thinwire.how import gather, gossip, hierarchical, native, server, two_shot
from thinwire.on import deltas, gradients, momentum, nesterov, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import (
    dct,
    dgc,
    feedback,
    identity,
    lowrank,
    on_change,
    randomk,
    sign,
    ternary,
    topk,
    uniform,
    visible,
)
from thinwire.when import delayed, every, growing, staggered, thinning, warmup

ROWS = {
    "dense": Strategy(),
    "accumulation": Strategy(when=every(8)),
    "delayed_update": Strategy(when=delayed(1, every(1))),
    "powersgd": Strategy(what=feedback(lowrank(4))),
    "dgc_sgd": Strategy(what=dgc(topk(0.001), 0.9), how=gather()),
    "ef_signsgd": Strategy(what=feedback(sign()), how=two_shot(back=feedback(sign()))),
    "terngrad": Strategy(what=ternary(), how=two_shot()),
    "lag": Strategy(what=on_change(identity(), 0.1, 10), how=gather()),
    "parameter_server": Strategy(how=server((0,))),
    "decentralised": Strategy(how=gossip("ring"), on=parameters()),
    "noloco": Strategy(when=every(50), how=gossip("pairs"), on=parameters(outer=sgd(0.7, 0.5))),
    "eager_diloco": Strategy(delayed(29, every(30)), on=deltas(nesterov(), eager=True)),
    "intellect1": Strategy(
        every(100),
        uniform(8, 0, scale="sigma", at=6.0, grid="affine"),
        two_shot(),
        deltas(nesterov(0.7, 0.9)),
    ),
    "muloco": Strategy(
        every(30), feedback(uniform(2, grid="rise"), 0.9), two_shot(), deltas(nesterov(0.8, 0.9))
    ),
    "for_link": Strategy(
        delayed(5, staggered(4, every(75))), uniform(4), two_shot(), deltas(nesterov(), alpha=0.5)
    ),
    "topk_sgd": Strategy(what=feedback(topk(0.01)), how=gather()),
    "qsgd": Strategy(what=uniform(4, 256, rounding="stochastic"), how=two_shot()),
    "demo": Strategy(
        every(1), feedback(dct(64) >> topk(32, per=4096), 0.999), gather(), gradients(then="sign")
    ),
    "onebit_adam": Strategy(
        warmup(100, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "zero_one_adam": Strategy(
        thinning(1000, every(1)), feedback(sign()), two_shot(back=feedback(sign())), momentum()
    ),
    "two_level": Strategy(what=uniform(4), how=hierarchical(native(), two_shot(), node=8)),
    "local_sgd": Strategy(when=every(16), on=parameters()),
    "fedpaq": Strategy(every(8), uniform(4), two_shot(), deltas(outer=sgd(1.0))),
    "post_local_sgd": Strategy(when=warmup(100, every(16)), on=parameters()),
    "stl_sgd": Strategy(when=growing(1, 32, 8), on=parameters()),
    "sparta": Strategy(what=randomk(0.005), on=parameters()),
    "diloco": Strategy(when=every(100), on=deltas(outer=nesterov())),
    "streaming_diloco": Strategy(
        delayed(5, staggered(4, every(100))), uniform(4), two_shot(), deltas(nesterov(), alpha=0.5)
    ),
    "sparseloco": Strategy(
        every(30),
        feedback(topk(64, 4096) >> uniform(2, grid="rise"), 0.95),
        gather(),
        deltas(outer=sgd(1.0)),
    ),
    "pulseloco": Strategy(every(8), feedback(visible()), gather(), deltas(outer=nesterov())),
}


NEEDS = {
    "two_level": {"node": 8},
    "post_local_sgd": {"start": 100},
    "onebit_adam": {"start": 100},
    "zero_one_adam": {"until": 1000},
    "for_link": {"gbits": 1.0},
}
