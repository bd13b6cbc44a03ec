"""Decide whether components fit together, and why not.

Components state what they can do by flags and by `refuses`. This module brings those together, and
every answer is a reason with what to do instead. It never asks for a concrete class, so a component
that a stranger adds is judged by its own flags.

    refusals            a codec over a route, on a target, by a schedule
    mask_refusal        a codec that sends some entries only, to a target that needs to know which
    base_refusal        a codec that compares with values of all ranks, to a target without any
    pace_refusal        a schedule at which slow ranks rest
    setting_refusals    a strategy with the settings of a run
    weight_refusal      a route with unequal ranks
    round_refusals      all of it in rounds that close with a quorum
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thinwire.core.codec import Codec
from thinwire.core.component import inside
from thinwire.core.route import Route
from thinwire.core.schedule import Schedule
from thinwire.core.spec import Part, RankContext, Spec
from thinwire.core.target import Target


def refusals(when: Schedule, what: Codec, how: Route, on: Target) -> list[str]:
    """Return why these four do not go together; nothing where they do.

    Args:
        when: the schedule.
        what: the codec.
        how: the route that carries it.
        on: the target.

    Returns:
        All reasons, each with what to do instead.

    Example:
        >>> from thinwire.how import native
        >>> from thinwire.on import gradients
        >>> from thinwire.what import identity, topk
        >>> from thinwire.when import every
        >>> refusals(every(1), identity(), native(), gradients())
        []
        >>> [reason[:45] for reason in refusals(every(1), topk(0.1), native(), gradients())]
        ['Cannot carry topk(k=0.1, per=0) over native()']
    """
    reasons = (
        how.refuses(what),
        on.refuses(when, what),
        how.suits(on),
        mask_refusal(what, how, on),
        pace_refusal(when, how, on),
        base_refusal(what, how, on),
    )
    return [reason for reason in reasons if reason]


def mask_refusal(what: Codec, how: Route, on: Target) -> str | None:
    """Return why the route cannot hand the target the mask of the entries that a partial codec
    sends."""
    if how.carries_mask or not what.traits.partial or not on.accepts_mask:
        return None
    return (
        f"Cannot use {what!r} over {how!r} on {on!r}: the route does not carry "
        "the mask of the entries that were drawn, so the others "
        "would be erased. Use native(), gather() or gossip()"
    )


def needing_base(what: Codec, how: Route) -> list[Codec]:
    """List the codecs, nested ones too, that compare with values that every rank holds alike."""
    return [
        each
        for each in (*inside(what), *inside(how))
        if isinstance(each, Codec) and each.traits.needs_base
    ]


def base_refusal(what: Codec, how: Route, on: Target) -> str | None:
    """Return why a codec has nothing to compare with: the target offers no base."""
    needing = needing_base(what, how)
    if on.offers_base or not needing:
        return None
    return (
        f"Cannot use {needing[-1]!r} on {on!r}: it sends what changes values that every rank holds "
        "alike, and there are none. Use deltas(…), which has an anchor"
    )


def pace_refusal(when: Schedule, how: Route, on: Target) -> str | None:
    """Return why ranks cannot rest at some steps of this schedule."""
    # No rank ever rests: nothing to refuse.
    if not any(isinstance(part, Schedule) and part.skips_steps for part in inside(when)):
        return None
    if not when.skips_steps:
        return (
            f"Cannot use {when!r}: by_speed(…) goes around all other schedules, as in "
            "by_speed(delayed(…, every(…)))"
        )
    if on.clock == "backward":
        return (
            f"Cannot use {when!r} on {on!r}: its steps are backward passes, whose "
            "gradients every optimiser step wants. "
            "Use deltas(…) or parameters(), or give slow ranks smaller batches and "
            "attach(weight=…)"
        )
    if not how.consensus:
        return (
            f"Cannot use {when!r} over {how!r}: ranks weigh by the steps they take, "
            "and where a rank receives from some of "
            "the others only, weights must be alike. Use a route with consensus, such as "
            "two_shot(), "
            "or another schedule"
        )
    return None


@dataclass(frozen=True)
class Settings:
    """A run's settings that a strategy may not go with.

    scaler: a `GradScaler` is at work.
    overlap: where means land: "backward", "forward" or "priority".
    broadcasts: the first buffer that rank 0 broadcasts at each landing; `None` for none.
    skips_nonfinite: steps with values that are not finite are left out.
    check_every: steps between two comparisons of ranks; `None` for none, or as many as they agree.
    manual: the loop brings its gradients by hand.
    """

    scaler: bool = False
    overlap: str = "backward"
    broadcasts: str | None = None
    skips_nonfinite: bool = False
    check_every: int | None = None
    manual: bool = False


def setting_refusals(
    when: Schedule, what: Codec, how: Route, on: Target, settings: Settings
) -> list[str]:
    """Return why a strategy does not go with the settings of a run; nothing where it does."""
    reasons = []
    local = on.clock != "backward"
    # 1. buffers, comparisons, gradients by hand
    if settings.broadcasts is not None and not how.consensus:
        reasons.append(
            f"{how!r} waits for one or two ranks, but buffers='broadcast' has all wait for "
            f"rank 0's ({settings.broadcasts!r}, …) at each "
            "landing: take buffers='local'"
        )
    if settings.check_every is not None and not equal_after_landing(when, what, how, on):
        reasons.append(
            f"check_every={settings.check_every}: with {what!r} over {how!r} on "
            f"{on!r} ranks never hold equal "
            "parameters. Take check_every=None"
        )
    if settings.manual and local:
        reasons.append(
            f"source='manual' with {on!r}: a step is an optimiser step there, counted where "
            "the optimiser takes it, and no gradient travels. Leave source='hooks'"
        )
    # 2. values that are not finite, and scaled losses
    if settings.skips_nonfinite and local:
        reasons.append(
            f"nonfinite='skip' with {on!r}: by a landing the local steps have applied "
            "the values. Take 'raise' and go on from a "
            "checkpoint, or let a GradScaler or the loop skip local steps"
        )
    if settings.scaler and not local:
        reasons += _scaler_refusals(when, on, settings.overlap)
    # 3. landing in the forward pass
    if settings.overlap != "backward" and local:
        reasons.append(
            f"overlap={settings.overlap!r}: {on!r} does not land in each step: hide what it sends "
            "behind delayed(tau, …)"
        )
    elif settings.overlap != "backward" and when.delay:
        reasons.append(
            f"overlap={settings.overlap!r}: with {when!r} means are hidden already: take one of "
            "the two"
        )
    return reasons


def _scaler_refusals(when: Schedule, on: Target, overlap: str) -> list[str]:
    """Return what does not go with a `GradScaler` that is at work, on gradients."""
    reasons = []
    if when.delay:
        reasons.append(
            f"a GradScaler with {when!r}: a mean would land in another step's scale, and "
            "none in the first. Use bf16"
        )
    if not on.homogeneous:
        reasons.append(
            f"a GradScaler with {on!r}: what lands in .grad is not in units of the loss "
            "and must not be unscaled. Use bf16"
        )
    if overlap != "backward":
        reasons.append(
            f"a GradScaler with overlap={overlap!r}: it looks at all gradients before the "
            "step. Use bf16"
        )
    return reasons


def equal_after_landing(when: Schedule, what: Codec, how: Route, on: Target) -> bool:
    """Return whether ranks hold something equal after a landing, which `sync.check()` can prove."""
    # ranks are never equal in all parameters at once where these land by turns
    by_turns = what.traits.partial or when.fragments > 1
    return how.consensus and not (by_turns and on.accepts_mask)


def weight_refusal(how: Route, weights: Sequence[float]) -> str | None:
    """Return why ranks of these weights cannot have this route."""
    if how.consensus or len(set(weights)) <= 1:
        return None
    return (
        f"{how!r}: a rank receives from some of the others only, so weights must be alike; by "
        f"rank: {dict(enumerate(weights))}. "
        "Give every rank the same weight, or take a route with consensus, such as two_shot()"
    )


def round_refusals(when: Schedule, what: Codec, how: Route, on: Target) -> list[str]:
    """Return why rounds that close with a quorum cannot have these; nothing where they can.

    In such a round each rank takes local steps from one anchor and hands on one packet, which
    every rank that is there opens; no rank waits for a certain other one.
    """
    # One question for each part, by its flags; all reasons are given at once.
    reasons = []
    if not when.closes_rounds:
        reasons.append(f"{when!r}: a round is so many local steps; take every(n), without a phase")
    if not how.opens_each_packet:
        reasons.append(f"{how!r}: each contribution goes to whoever is there; take gather()")
    if not on.moves_anchor:
        reasons.append(
            f"{on!r}: a round goes from an anchor to the next; take deltas(outer=…), without "
            "alpha and eager"
        )
    if what.single_packet_coder is None or "replicated" in _kinds_of_state(what):
        reasons.append(
            f"{what!r}: it must send one packet and keep no state that all ranks hold equal, as "
            "not all "
            "receive the same rounds in time"
        )
    return reasons


def _kinds_of_state(what: Codec) -> set[str]:
    """List the kinds of state that a codec has, by making it for a small matrix."""
    spec = Spec((Part("probe", (64, 64), 0, "matrix"),), 0, 64 * 64, torch.float32)
    return {leaf.kind for _, leaf in what.init(spec, RankContext(0, (0, 1), 0, 0)).walk()}
