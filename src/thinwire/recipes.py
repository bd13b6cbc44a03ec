"""Named strategies: methods of the literature as rows of when × what × how × on.

Each is a function of its few knobs and returns a `Strategy`, which prints as the code that makes it
and may be changed with `dataclasses.replace`. "Differs from the paper" says where a row is not the
paper's program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from thinwire.core import Codec
from thinwire.errors import StrategyError
from thinwire.how import gather, gossip, hierarchical, native, server, two_shot
from thinwire.on import deltas, gradients, momentum, nesterov, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import (
    cast,
    dct,
    dgc,
    feedback,
    hadamard,
    identity,
    lowrank,
    on_change,
    randomk,
    sign,
    ternary,
    topk,
    uniform,
)
from thinwire.when import delayed, every, growing, staggered, thinning, warmup


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


def topk_sgd(share: float = 0.01) -> Strategy:
    """The largest `share` of each gradient, with error feedback, gathered. (Aji & Heafield 2017,
    arXiv:1704.05021.)

    Differs from the paper: as many entries as asked for of each bucket (or slice of one), not those
    above a threshold over all layers.
    """
    return Strategy(every(1), feedback(topk(float(share))), gather(), gradients())


def dgc_sgd(share: float = 0.001, momentum: float = 0.9, start: int = 0) -> Strategy:
    """The largest `share` of all momentum that was not said yet, gathered, after `start` dense
    steps.

    (Lin, Han, Mao, Wang & Dally 2018, arXiv:1712.01887.) The optimiser is an SGD *without*
    momentum: that is in the codec.

    Differs from the paper: see `thinwire.what.dgc`; one dense phase in place of a density that
    falls over the first epochs.
    """
    return Strategy(
        warmup(start, every(1)) if start else every(1),
        dgc(topk(float(share)), momentum),
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

    Differs from the paper: no server, all ranks hear all; the rule holds bucket by bucket.
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


def local_sgd(period: int = 16) -> Strategy:
    """`period` local steps, then the mean of the parameters. (Stich 2019, arXiv:1805.09767.)

    Differs from the paper: any optimiser may take the steps, whose state stays each rank's own, and
    the last weights count, not their mean.
    """
    return Strategy(every(period), identity(), native(), parameters())


def fedpaq(period: int = 8, bits: int = 4) -> Strategy:
    """`period` local steps, then the mean of the parameters, whose changes travel in `bits` bits.

    (Reisizadeh et al. 2020, arXiv:1909.13014.)

    Differs from the paper: every rank takes part in every round; rounding to nearest in blocks of
    256; the sum is rounded once more on its way back.
    """
    return Strategy(every(period), uniform(bits), two_shot(), deltas(outer=sgd(1.0)))  # type: ignore[arg-type]  # checked by uniform


def post_local_sgd(start: int, period: int = 16) -> Strategy:
    """Dense for `start` steps, then local SGD. (Lin et al. 2020, arXiv:1808.07217.)

    Differs from the paper: in the dense phase parameters are averaged after each step, which equals
    averaging gradients only for optimisers that are linear in them.
    """
    return Strategy(warmup(start, every(period)), identity(), native(), parameters())


def stl_sgd(first: int = 1, last: int = 32, rounds: int = 8) -> Strategy:
    """Local SGD whose rounds double, `rounds` of each length, from `first` steps to `last`. (Shen
    et al. 2021, arXiv:2006.06377.)

    Differs from the paper: stages are counted in rounds; rates are the user's, and do not fall with
    the stage by themselves.
    """
    return Strategy(growing(first, last, rounds), identity(), native(), parameters())


def sparta(share: float = 0.005, period: int = 1) -> Strategy:
    """At every step another `share` of the parameters, drawn alike on all ranks, is averaged; all
    else stays each rank's own.

    (SPARTA, Beton et al. 2025, openreview stFPf3gzq1.) Validate and save the mean: `with
    sync.common_weights():`.

    Differs from the paper: entries are drawn one in each of k strata, not independently; the mean
    does not land late.
    """
    return Strategy(every(period), randomk(float(share)), native(), parameters())


def decentralised(
    topology: Literal["ring", "pairs", "exponential"] = "ring", period: int = 1
) -> Strategy:
    """Each rank averages its parameters with its neighbours', and nobody waits for the rest.
    (D-PSGD, Lian et al. 2017, arXiv:1705.09056.)

    Validate and save the mean: `with sync.common_weights():`. Differs from the paper: neighbours
    are averaged after the step, not before.
    """
    return Strategy(every(period), identity(), gossip(topology), parameters())


def noloco(period: int = 50, lr: float = 0.7, momentum: float = 0.5, pull: float = 1.0) -> Strategy:
    """Local steps, then each rank takes an outer step with one other, drawn by lot: no all-reduce.

    (NoLoCo, Kolehmainen et al. 2025, arXiv:2506.10911.) Each rank has an anchor and an outer
    momentum of its own, and the step draws the anchors of a pair together by gamma = pull · lr.
    Validate and save the mean: `with sync.common_weights():`.

    Period, rates and gamma = the outer rate (`pull` = 1) are those of its authors' code
    (github.com/jkolehm/noloco, of its largest model). Differs from it: one message of parameters
    says both what it sends as two, so anchors do not travel ahead; pipeline stages are not routed
    at random.
    """
    return Strategy(
        every(period), identity(), gossip("pairs"), parameters(outer=sgd(lr, momentum), pull=pull)
    )


def diloco(period: int = 100, lr: float | None = None, momentum: float = 0.9) -> Strategy:
    """`period` local steps, then a Nesterov step on the mean delta. (Douillard et al. 2023,
    arXiv:2311.08105.)

    Differs from the paper: without `lr` the outer rate is the best known for the replicas and the
    period (`thinwire.on.outer.outer_rate`: 0.4 to 0.8 for 1 to 8 replicas; Charles et al. 2025,
    arXiv:2503.09799); the paper has 0.7 throughout.
    """
    return Strategy(every(period), identity(), native(), deltas(outer=nesterov(lr, momentum)))


def eager_diloco(
    period: int = 30,
    tau: int | None = None,
    lr: float | None = None,
    momentum: float = 0.9,
    fragments: int = 1,
    bits: int = 32,
) -> Strategy:
    """DiLoCo whose mean travels for a whole round, while each rank goes on from its own delta.
    (Kale et al. 2025, arXiv:2502.12996.)

    Without `tau` the mean takes all of the next round but its last step. In `fragments` that travel
    by turns, each a few steps late, the wire is never idle and never waited for; below 32 `bits`,
    deltas are rounded with error feedback. Over 10 Mb/s the bench's best is
    `eager_diloco(period=10, tau=2, lr=0.5, momentum=0.8, fragments=5, bits=2)`.

    Differs from the paper: see `thinwire.on.deltas`; fragments are those of Streaming DiLoCo, and
    bits those of MuLoCo.
    """
    turns = staggered(fragments, every(period)) if fragments != 1 else every(period)
    when = delayed(period - 1 if tau is None else tau, turns)
    on = deltas(outer=nesterov(lr, momentum), eager=True)
    if bits == 32:
        return Strategy(when, identity(), native(), on)
    return Strategy(when, feedback(uniform(bits, grid="rise"), 0.9), two_shot(), on)  # type: ignore[arg-type]  # checked by uniform


def streaming_diloco(
    period: int = 100, fragments: int = 4, tau: int = 5, alpha: float = 0.5, lr: float | None = None
) -> Strategy:
    """DiLoCo in 4-bit fragments that travel for tau steps while training goes on. (Douillard et al.
    2025, arXiv:2501.18512.)

    Differs from the paper: 4-bit integers in blocks of 256, not E3M0 floats; fragments are of
    parameters, evenly dealt, not of whole layers; without `lr` the outer rate is that of `diloco`;
    the sum is rounded once more on its way back.

    The paper's alpha wants many rounds: where a run has some 80, alpha=0 with a tau of one step
    ended 7 % lower (docs/evidence.md).
    """
    when = delayed(tau, staggered(fragments, every(period)))
    return Strategy(when, uniform(4), two_shot(), deltas(outer=nesterov(lr), alpha=alpha))


def intellect1(period: int = 100, lr: float = 0.7) -> Strategy:
    """DiLoCo whose deltas travel in 8 bits, spread over mean ± 6 sigma. (INTELLECT-1, Jaghouar et
    al. 2024, arXiv:2412.01152.)

    Differs from the paper: the grid is uniform over that range, not by quantiles of it; compressed
    twice (`two_shot`), not once a hop.
    """
    return Strategy(
        every(period),
        uniform(8, 0, scale="sigma", at=6.0, grid="affine"),
        two_shot(),
        deltas(outer=nesterov(lr, 0.9)),
    )


def muloco(period: int = 30, bits: int = 2, decay: float = 0.9, lr: float = 0.8) -> Strategy:
    """DiLoCo for ranks that train with Muon, in 2 bits with error feedback. (MuLoCo, Thérien et al.
    2025, arXiv:2505.23725.)

    The optimiser is the loop's: `torch.optim.Muon` where all parameters are matrices, else
    `thinwire.optim.muon.muon(model, lr)`, which gives the matrices inside to Muon and all else to
    AdamW, as `thinwire train --strategy muloco --optimizer muon` does.

    Differs from the paper: bits are a uniform grid in blocks of 256; the sum is rounded once more,
    without feedback, on its way back.
    """
    what = feedback(uniform(bits, grid="rise"), decay)  # type: ignore[arg-type]  # checked by uniform
    return Strategy(every(period), what, two_shot(), deltas(outer=nesterov(lr, 0.9)))


def sparseloco(
    period: int = 30, k: int = 64, per: int = 4096, decay: float = 0.95, lr: float = 1.0
) -> Strategy:
    """The k largest of each 4096 delta entries in 2 bits, with error feedback. (Sarfi et al. 2025,
    arXiv:2508.15706.)

    Differs from the paper: 8-bit places (Elias–Fano); no clipping of contributions to their median
    norm.
    """
    what = feedback(topk(k, per) >> uniform(2, grid="rise"), decay)
    return Strategy(every(period), what, gather(), deltas(outer=sgd(lr)))


def for_link(gbits: float, node: int | None = None) -> Strategy:
    """What is likely right for the slowest link of `gbits` Gb/s, for a model of 1B parameters and a
    step of 1 s; measure, then choose.

    (After Zhang et al. 2020, arXiv:2006.10103; Wang et al. 2023, arXiv:2306.10209; Douillard et al.
    2025; Sarfi et al. 2025.)

        200 and more    16 bits at every step, hidden behind backward 40 to 200       8 bits inside
        nodes (of `node` ranks, or as the launcher says), 4 rotated bits between them, at every step
        4 to 40         Streaming DiLoCo, 30 steps 0.4 to 4        Streaming DiLoCo, 75 steps less
        SparseLoCo, whose sums come back as sparse as they went

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
    """Every recipe by its name.

    Example:
        >>> names()["diloco"](period=30).when
        every(n=30)
    """
    makers = (
        *(
            dense,
            accumulation,
            delayed_update,
            powersgd,
            topk_sgd,
            dgc_sgd,
            ef_signsgd,
            terngrad,
            qsgd,
            lag,
        ),
        *(
            demo,
            onebit_adam,
            zero_one_adam,
            two_level,
            parameter_server,
            local_sgd,
            fedpaq,
            post_local_sgd,
            stl_sgd,
            sparta,
        ),
        *(
            decentralised,
            noloco,
            diloco,
            eager_diloco,
            streaming_diloco,
            intellect1,
            muloco,
            sparseloco,
            for_link,
        ),
    )
    return {maker.__name__: maker for maker in makers}
