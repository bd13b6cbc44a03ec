"""Named strategies: methods of the literature as rows of when × what × how × on.

Each is a function of its few knobs and returns a `Strategy`, which prints as the code that makes it and may be changed with
`dataclasses.replace`. "Differs from the paper" says where a row is not the paper's program.
"""

from __future__ import annotations

from collections.abc import Callable

from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, nesterov, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import feedback, identity, lowrank, topk, uniform
from thinwire.when import delayed, every, staggered, warmup


def dense() -> Strategy:
    """Plain data parallelism: what DistributedDataParallel does."""
    return Strategy(every(1), identity(), native(), gradients())


def accumulation(passes: int = 8) -> Strategy:
    """Gradient accumulation: one exchange for `passes` backward passes, whose gradients are summed."""
    return Strategy(every(passes), identity(), native(), gradients())


def delayed_update(tau: int = 1) -> Strategy:
    """w(t+1) = w(t) - eta · mean g(t - tau): the wire has tau steps to do its work. (Zinkevich, Langford, Smola 2009.)"""
    return Strategy(delayed(tau, every(1)), identity(), native(), gradients())


def powersgd(rank: int = 4, start: int = 0) -> Strategy:
    """Rank-`rank` factors with error feedback, after `start` dense steps. (Vogels et al. 2019, arXiv:1905.13727.)

    Differs from the paper: see `thinwire.what.lowrank`; momentum stays in the user's optimiser.
    """
    return Strategy(warmup(start, every(1)) if start else every(1), feedback(lowrank(rank)), native(), gradients())


def topk_sgd(share: float = 0.01) -> Strategy:
    """The largest `share` of each gradient, with error feedback, gathered. (Aji & Heafield 2017, arXiv:1704.05021.)"""
    return Strategy(every(1), feedback(topk(share)), gather(), gradients())


def qsgd(bits: int = 4, block: int = 256) -> Strategy:
    """Unbiased `bits`-bit gradients by stochastic rounding. (Alistarh et al. 2017, arXiv:1610.02132.)

    Differs from the paper: blocks are scaled by their largest magnitude, not their norm; no entropy code.
    """
    return Strategy(every(1), uniform(bits, block, rounding="stochastic"), two_shot(), gradients())  # type: ignore[arg-type]  # checked by uniform


def two_level(node: int, bits: int = 4) -> Strategy:
    """Exact inside nodes of `node` ranks, `bits` bits between them. (After ZeRO++'s qgZ, Wang et al. 2023, arXiv:2306.10209.)

    Differs from the paper: for replicated, not sharded, gradients; no Hadamard rotation.
    """
    return Strategy(every(1), uniform(bits), hierarchical(native(), two_shot(), node), gradients())  # type: ignore[arg-type]


def local_sgd(period: int = 16) -> Strategy:
    """`period` local steps, then the mean of the parameters. (Stich 2019, arXiv:1805.09767.)"""
    return Strategy(every(period), identity(), native(), parameters())


def fedpaq(period: int = 8, bits: int = 4) -> Strategy:
    """`period` local steps, then the mean of the parameters, whose changes travel in `bits` bits.

    (Reisizadeh et al. 2020, arXiv:1909.13014.)

    Differs from the paper: every rank takes part in every round; rounding to nearest in blocks of 256.
    """
    return Strategy(every(period), uniform(bits), two_shot(), deltas(outer=sgd(1.0)))  # type: ignore[arg-type]  # checked by uniform


def post_local_sgd(start: int, period: int = 16) -> Strategy:
    """Dense for `start` steps, then local SGD. (Lin et al. 2020, arXiv:1808.07217.)

    Differs from the paper: in the dense phase parameters are averaged after each step, which equals averaging gradients only for
    optimisers that are linear in them.
    """
    return Strategy(warmup(start, every(period)), identity(), native(), parameters())


def diloco(period: int = 100, lr: float = 0.7, momentum: float = 0.9) -> Strategy:
    """`period` local steps, then a Nesterov step on the mean delta. (Douillard et al. 2023, arXiv:2311.08105.)"""
    return Strategy(every(period), identity(), native(), deltas(outer=nesterov(lr, momentum)))


def streaming_diloco(period: int = 100, fragments: int = 4, tau: int = 5, alpha: float = 0.5, lr: float = 0.7) -> Strategy:
    """DiLoCo in 4-bit fragments that travel for tau steps while training goes on. (Douillard et al. 2025, arXiv:2501.18512.)

    Differs from the paper: 4-bit integers in blocks of 256, not E3M0 floats; fragments are runs of parameters, dealt like cards.
    """
    when = delayed(tau, staggered(fragments, every(period)))
    return Strategy(when, uniform(4), two_shot(), deltas(outer=nesterov(lr, 0.9), alpha=alpha))


def sparseloco(period: int = 30, k: int = 64, per: int = 4096, decay: float = 0.95, lr: float = 1.0) -> Strategy:
    """The k largest of each 4096 delta entries in 2 bits, with error feedback. (Sarfi et al. 2025, arXiv:2508.15706.)

    Differs from the paper: 8-bit places (Elias–Fano); no clipping of contributions to their median norm.
    """
    what = feedback(topk(k, per) >> uniform(2, grid="rise"), decay)
    return Strategy(every(period), what, gather(), deltas(outer=sgd(lr)))


def names() -> dict[str, Callable[..., Strategy]]:
    """Every recipe by its name.

    Example:
        >>> names()["diloco"](period=30).when
        every(n=30)
    """
    makers = (
        *(dense, accumulation, delayed_update, powersgd, topk_sgd, qsgd, two_level),
        *(local_sgd, fedpaq, post_local_sgd, diloco, streaming_diloco, sparseloco),
    )
    return {maker.__name__: maker for maker in makers}
