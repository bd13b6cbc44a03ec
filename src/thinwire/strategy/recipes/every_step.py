"""Named strategies that send gradients."""

from __future__ import annotations

from thinwire.core import Codec
from thinwire.how import gather, hierarchical, native, server, two_shot
from thinwire.on import gradients, momentum
from thinwire.strategy.strategy import Strategy
from thinwire.what import (
    dct,
    dgc,
    feedback,
    hadamard,
    identity,
    lowrank,
    on_change,
    sign,
    ternary,
    topk,
    uniform,
)
from thinwire.when import delayed, every, thinning, warmup


def dense() -> Strategy:
    """Plain data parallelism: what DistributedDataParallel does. (Li et al. 2020,
    arXiv:2006.15704.)

    Differs from the paper: the model is not wrapped; the result is the same.
    """
    return Strategy(every(1), identity(), native(), gradients())


def accumulation(passes: int = 8) -> Strategy:
    """Gradient accumulation: one exchange for `passes` backward passes, whose gradients are summed.
    (Ott et al. 2018, arXiv:1806.00187.)

    Differs from the paper: the schedule counts the passes, whatever precision they are in.
    """
    return Strategy(every(passes), identity(), native(), gradients())


def delayed_update(tau: int = 1, compensate: float = 0.0) -> Strategy:
    """w(t+1) = w(t) - eta · mean g(t - tau): the wire has tau steps to do its work. (Langford,
    Smola, Zinkevich 2009, arXiv:0911.0491.)

    With `compensate` above 0 the mean is compensated for what the parameters have moved since
    (DC-ASGD, arXiv:1609.08326).

    Differs from the papers: each step applies the mean of all ranks' gradients of one step, where
    there ranks' single gradients come by turns, or as they are done; so every gradient is exactly
    tau steps late.
    """
    return Strategy(delayed(tau, every(1)), identity(), native(), gradients(compensate=compensate))


def powersgd(rank: int = 4, start: int = 0) -> Strategy:
    """Rank-`rank` factors with error feedback, after `start` dense steps. (Vogels et al. 2019,
    arXiv:1905.13727.)

    Differs from the paper: see `thinwire.what.lowrank`; momentum stays in the user's optimiser.

    Where a round trip takes tens of milliseconds, `dataclasses.replace(powersgd(), how=auto())`
    takes half the time: a ring waits for several of them for each small sum.
    """
    return Strategy(
        warmup(start, every(1)) if start else every(1),
        feedback(lowrank(rank)),
        native(),
        gradients(),
    )


def topk_sgd(fraction: float = 0.01) -> Strategy:
    """The largest `fraction` of each gradient, with error feedback, gathered. (Aji & Heafield 2017,
    arXiv:1704.05021.)

    Differs from the paper: as many entries as asked for of each bucket (or slice of one), not those
    above a threshold over all layers.
    """
    return Strategy(every(1), feedback(topk(float(fraction))), gather(), gradients())


def dgc_sgd(fraction: float = 0.001, momentum: float = 0.9, start: int = 0) -> Strategy:
    """Gather the largest `fraction` of the momentum that was not sent yet, after `start` dense
    steps.

    (Lin, Han, Mao, Wang & Dally 2018, arXiv:1712.01887.) The optimiser is an SGD *without*
    momentum: that is in the codec.

    Differs from the paper: see `thinwire.what.dgc`; one dense phase in place of a density that
    falls over the first epochs.
    """
    return Strategy(
        warmup(start, every(1)) if start else every(1),
        dgc(topk(float(fraction)), momentum),
        gather(),
        gradients(),
    )


def ef_signsgd(block: int = 256) -> Strategy:
    """One bit a value and a magnitude a block, with feedback on both sides. (Karimireddy et al.
    2019, arXiv:1901.09847.)

    Differs from the paper: a magnitude a block, not a layer; the sum is encoded again, with
    feedback of its own, on its way back.
    """
    return Strategy(
        every(1), feedback(sign(block)), two_shot(back=feedback(sign(block))), gradients()
    )


def terngrad(block: int = 256) -> Strategy:
    """Unbiased -s, 0 or s for each value, s the largest magnitude of its block: 1.6 bits. (Wen et
    al. 2017, arXiv:1705.07878.)

    Differs from the paper: a scale a block, not a layer; no clipping; the sum is rounded to three
    levels again on its way back.
    """
    return Strategy(every(1), ternary(block), two_shot(), gradients())


def lag(xi: float = 0.1, window: int = 10) -> Strategy:
    """A rank sends the change of its gradient where that is large beside recent steps; else its
    last one counts again, for no bytes.

    (Lazily aggregated gradients, Chen, Giannakis, Sun & Yin 2018, arXiv:1805.09965.) For large or
    full batches: see `on_change`.

    Differs from the paper: no server, so every rank receives every message; the rule holds bucket
    by bucket.
    """
    return Strategy(every(1), on_change(xi=xi, window=window), gather(), gradients())


def parameter_server(servers: int = 1) -> Strategy:
    """The first ranks add up for all and send the mean. (Li et al. 2014, "Scaling distributed
    machine learning with the parameter server".)

    Differs from the paper: servers work, too; they hand out the mean of gradients, and every rank
    steps by itself; all wait for all.
    """
    return Strategy(every(1), identity(), server(tuple(range(servers))), gradients())


def qsgd(bits: int = 4, block: int = 256) -> Strategy:
    """Unbiased `bits`-bit gradients by stochastic rounding. (Alistarh et al. 2017,
    arXiv:1610.02132.)

    Differs from the paper: blocks are scaled by their largest magnitude, not their norm; no entropy
    code; the sum is rounded once more on its way back.
    """
    return Strategy(every(1), uniform(bits, block, rounding="stochastic"), two_shot(), gradients())  # type: ignore[arg-type]  # checked by uniform


def demo(size: int = 64, k: int = 32, decay: float = 0.999) -> Strategy:
    """The k largest frequencies of each tile of a decaying sum of gradients, and the sign of their
    mean.

    (DeMo, Peng, Quesnelle & Kingma 2024, arXiv:2411.19870.) The optimiser is a plain
    `torch.optim.SGD(lr, weight_decay=…)`.

    Differs from the paper: gradients are summed, not gradients times their rate, so a change of
    rate takes effect at once; a frequency's mean is over all ranks, not over those that picked it;
    edges of a matrix are smaller tiles (see `thinwire.what.dct`).
    """
    return Strategy(
        every(1),
        feedback(dct(size) >> topk(k, per=size * size), decay),
        gather(),
        gradients(then="sign"),
    )


def onebit_adam(start: int, beta1: float = 0.9, beta2: float = 0.999) -> Strategy:
    """Adam, dense for `start` steps; then its momentum travels as one bit a value, with feedback on
    both sides, its variance frozen.

    (1-bit Adam, Tang et al. 2021, arXiv:2102.02888.) Take 15 to 20 % of the run for `start`, and
    `torch.optim.SGD(lr, weight_decay=…)` as the optimiser: what is in `.grad` is Adam's update, so
    rates are Adam's.

    Differs from the paper: both averages are bias-corrected, as in torch; a sign's magnitude is
    that of a block of 256, not of the tensor; no update is larger than `momentum`'s bound, and
    weights that no dense step gave a gradient stay where they are.
    """
    how = two_shot(back=feedback(sign()))
    return Strategy(warmup(start, every(1)), feedback(sign()), how, momentum((beta1, beta2)))


def zero_one_adam(
    until: int, kappa: int = 16, beta1: float = 0.9, beta2: float = 0.999
) -> Strategy:
    """1-bit Adam whose variance is refreshed at dense steps that grow rarer, in place of one dense
    phase; frozen from step `until` on.

    (0/1 Adam, Lu et al. 2022, arXiv:2202.06009.) The optimiser is a `torch.optim.SGD(lr,
    weight_decay=…)`, as for `onebit_adam`.

    Differs from the paper: the momentum travels at every step (no local steps between); both
    averages are bias-corrected, as in torch; updates have the bound of `onebit_adam`'s.
    """
    how = two_shot(back=feedback(sign()))
    return Strategy(
        thinning(until, every(1), kappa), feedback(sign()), how, momentum((beta1, beta2))
    )


def two_level(node: int, bits: int = 4, rotate: int = 0) -> Strategy:
    """Exact inside nodes of `node` ranks, `bits` bits between them. (After ZeRO++'s qgZ, Wang et
    al. 2023, arXiv:2306.10209.)

    `rotate` is the block of a Hadamard rotation before rounding, as in the paper; 0 for none.

    Differs from the paper: for replicated, not sharded, gradients.
    """
    thin: Codec = uniform(bits)  # type: ignore[arg-type]  # checked by uniform
    return Strategy(
        every(1),
        hadamard(rotate) >> thin if rotate else thin,
        hierarchical(native(), two_shot(), node),
        gradients(),
    )
