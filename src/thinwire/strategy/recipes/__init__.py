"""Named strategies: methods of the literature as rows of when × what × how × on.

Each is a function of its few knobs and returns a `Strategy`, which prints as the code that makes it
and may be changed with `dataclasses.replace`. "Differs from the paper" says where a row is not the
paper's program.
"""

from __future__ import annotations

from collections.abc import Callable

from thinwire.errors import StrategyError
from thinwire.how import hierarchical, native, two_shot
from thinwire.on import deltas, gradients, sgd
from thinwire.strategy.recipes.every_step import (
    accumulation,
    delayed_update,
    demo,
    dense,
    dgc_sgd,
    ef_signsgd,
    lag,
    onebit_adam,
    parameter_server,
    powersgd,
    qsgd,
    terngrad,
    topk_sgd,
    two_level,
    zero_one_adam,
)
from thinwire.strategy.recipes.local_steps import (
    decentralised,
    diloco,
    eager_diloco,
    fedpaq,
    intellect1,
    local_sgd,
    muloco,
    noloco,
    post_local_sgd,
    pulseloco,
    sparseloco,
    sparta,
    stl_sgd,
    streaming_diloco,
)
from thinwire.strategy.strategy import Strategy
from thinwire.what import cast, feedback, hadamard, topk, uniform
from thinwire.when import every

__all__ = [
    "accumulation",
    "decentralised",
    "delayed_update",
    "demo",
    "dense",
    "dgc_sgd",
    "diloco",
    "eager_diloco",
    "ef_signsgd",
    "fedpaq",
    "for_link",
    "intellect1",
    "lag",
    "local_sgd",
    "muloco",
    "names",
    "noloco",
    "onebit_adam",
    "parameter_server",
    "post_local_sgd",
    "powersgd",
    "pulseloco",
    "qsgd",
    "sparseloco",
    "sparta",
    "stl_sgd",
    "streaming_diloco",
    "terngrad",
    "topk_sgd",
    "two_level",
    "zero_one_adam",
]


def for_link(gbits: float, node: int | None = None) -> Strategy:
    """Return what is likely right for the slowest link of `gbits` Gb/s, for a model of 1B
    parameters and a step of 1 s; measure, then choose.

    (After Zhang et al. 2020, arXiv:2006.10103; Wang et al. 2023, arXiv:2306.10209; Douillard et al.
    2025; Sarfi et al. 2025.)

        200 and more    16 bits at every step, hidden behind backward
        40 to 200       8 bits inside nodes (of `node` ranks, or as the launcher says), 4 rotated
                        bits between them, at every step
        4 to 40         Streaming DiLoCo, 30 steps
        0.4 to 4        Streaming DiLoCo, 75 steps
        less            SparseLoCo, whose sums come back as sparse as they went

    A smaller model or a longer step moves each line down in proportion. Differs from the papers: it
    is a rule of thumb from their settings.

    Raises:
        StrategyError: a rate that is not positive and finite.
    """
    if not 0 < gbits < float("inf"):
        raise StrategyError(
            f"for_link(gbits={gbits}): a rate is positive and finite, in Gb/s, such as 0.1 for "
            "100 Mb/s"
        )
    # The table above, from the fastest link to the slowest.
    if gbits >= 200:
        return Strategy(every(1), cast("bf16"), native(), gradients())
    if gbits >= 40:
        how = hierarchical((two_shot(), uniform(8)), two_shot(), "local" if node is None else node)
        return Strategy(every(1), hadamard(256) >> uniform(4), how, gradients())
    if gbits >= 0.4:
        return streaming_diloco(period=30 if gbits >= 4 else 75)
    sparse = feedback(topk(64, per=4096) >> uniform(2, grid="rise"), 0.95)
    return Strategy(every(30), sparse, two_shot(back=sparse), deltas(outer=sgd(1.0)))


def names() -> dict[str, Callable[..., Strategy]]:
    """Return every recipe by its name.

    Example:
        >>> names()["diloco"](period=30).when
        every(n=30)
    """
    makers = (
        dense,
        accumulation,
        delayed_update,
        powersgd,
        topk_sgd,
        dgc_sgd,
        ef_signsgd,
        terngrad,
        lag,
        parameter_server,
        qsgd,
        demo,
        onebit_adam,
        zero_one_adam,
        two_level,
        local_sgd,
        fedpaq,
        post_local_sgd,
        stl_sgd,
        sparta,
        decentralised,
        noloco,
        diloco,
        eager_diloco,
        streaming_diloco,
        intellect1,
        muloco,
        sparseloco,
        pulseloco,
        for_link,
    )
    return {maker.__name__: maker for maker in makers}
