"""Named strategies of local steps, which send parameters or what has become of them."""

from __future__ import annotations

from typing import Literal

from thinwire.how import gather, gossip, native, two_shot
from thinwire.on import deltas, nesterov, parameters, sgd
from thinwire.strategy.strategy import Strategy
from thinwire.what import (
    feedback,
    identity,
    randomk,
    topk,
    uniform,
    visible,
)
from thinwire.when import delayed, every, growing, staggered, warmup


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


def sparta(fraction: float = 0.005, period: int = 1) -> Strategy:
    """At every step another `fraction` of the parameters, drawn alike on all ranks, is averaged;
    all else stays each rank's own.

    (SPARTA, Beton et al. 2025, openreview stFPf3gzq1.) Validate and save the mean: `with
    sync.common_weights():`.

    Differs from the paper: entries are drawn one in each of k strata, not independently; the mean
    does not land late.
    """
    return Strategy(every(period), randomk(float(fraction)), native(), parameters())


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
    """Local steps, then each rank takes an outer step with one other, drawn at random.

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


def pulseloco(period: int = 8, lr: float | None = None, momentum: float = 0.9) -> Strategy:
    """Local steps, then only those deltas that change the bf16 view of the weights, with error
    feedback. (PULSELoCo, Miahi & Belilovsky 2026, arXiv:2602.03839.)

    For fine-tuning at small rates, where about 99 of 100 updates are too small for bf16 to show.

    Differs from the paper: places are packed (a bitmap or Elias–Fano); without `lr` the outer rate
    is that of `diloco`; where ranks weigh differently, see `thinwire.what.visible`.
    """
    return Strategy(
        every(period), feedback(visible()), gather(), deltas(outer=nesterov(lr, momentum))
    )
