"""Synchronise gradients during backward: the mean is in `.grad` when `backward()` returns.

G = sum over ranks of (s_k / sum s) · g_k, with s_k the ranks' weights; equal ones give the mean, as
in data parallelism. Where it lands tau steps late, `compensate=c` adds c · G² · (w(t) - w(t - tau))
entry by entry: the change of the gradient since then to first order, with G² in place of the
Hessian's diagonal (DC-ASGD, Zheng et al. 2017, arXiv:1609.08326). `then="sign"` leaves of it the
signs (signSGD with a mean in place of a vote, Bernstein et al. 2018, arXiv:1802.04434; DeMo's last
step, Peng, Quesnelle & Kingma 2024, arXiv:2411.19870).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.core import Bucket, Codec, Leaf, Schedule, State, Target
from thinwire.core.component import spelled_out
from thinwire.errors import StrategyError


@dataclass(frozen=True, repr=False)
class gradients(Target):
    """A target of the gradients of every parameter that trains; a step is a backward pass.

    Args:
        reduce: "mean" over ranks, by their weights; or "sum", which no weight touches.
        then: "sign" puts the signs of that in `.grad`: -1, 0 or 1, and NaN where it is not finite.
            With a plain `torch.optim.SGD(lr)` every parameter moves by lr.
        compensate: c above, at least 0; it keeps the parameters of the last tau / period + 1
            launches.

    Raises:
        StrategyError: another word for `reduce` or `then`, or a compensation below 0. With a
            strategy: a staggered schedule, a delay that lands in the middle of an accumulation, or
            a compensation of no delay.
        AttachError: (at attach) with `then="sign"` an optimiser other than torch's SGD (or a
            subclass) without momentum; with that or a compensation a GradScaler.

    Example:
        >>> gradients(reduce="sum").mean
        False
        >>> gradients(then="sign")
        gradients(reduce='mean', then='sign')
    """

    reduce: Literal["mean", "sum"] = "mean"
    then: Literal["sign"] | None = None
    compensate: float = 0.0
    clock: ClassVar[Literal["backward", "step"]] = "backward"

    def __post_init__(self) -> None:
        reasons = []
        if self.reduce not in ("mean", "sum"):
            reasons.append(f"gradients(reduce={self.reduce!r}): choose 'mean' or 'sum'")
        if self.then not in (None, "sign"):
            reasons.append(
                f"gradients(then={self.then!r}): choose 'sign', or None for the values themselves"
            )
        if not 0 <= self.compensate < float("inf"):
            reasons.append(
                f"gradients(compensate={self.compensate}): a compensation is at least 0, and finite"
            )
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        return spelled_out(self, 1)

    @property
    def mean(self) -> bool:
        return self.reduce == "mean"

    @property
    def updates(self) -> bool:
        return self.then is not None

    @property
    def homogeneous(self) -> bool:
        return self.then is None and not self.compensate

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if when.fragments > 1:
            return (
                f"Cannot use {when!r} on gradients(): an optimiser step needs every gradient, and "
                "fragments land at different steps. "
                "Use deltas(…), or every(n)"
            )
        if when.delay % when.period or (when.delay and when.gap != when.period):
            return (
                f"Cannot use {when!r} on gradients(): its means would land in the middle of an "
                "accumulation, when .grad holds a local sum. "
                f"Take a delay that is a multiple of the period {when.period}, and no warm-up of "
                "another period"
            )
        if self.compensate and not when.delay:
            return (
                f"Cannot use {self!r} with {when!r}: no gradient lands late, so there is nothing "
                "to compensate. "
                "Use delayed(tau, …), or compensate=0"
            )
        return None

    def init(self, bucket: Bucket) -> State:
        if not self.compensate:
            return State()
        # Leaf "then<i>": the parameters at one of the launches in the air, the oldest first.
        now = bucket.weights()
        return State(
            {
                f"then{i}": Leaf(now, "replicated", bucket.spec)
                for i in range(bucket.when.delay // bucket.when.period + 1)
            }
        )

    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        stored = list(state.leaves.values())
        # Every launch moves the stored parameters one back, and adds those of now.
        for older, newer in pairwise(stored):
            older.value = newer.value
        if stored:
            stored[-1].value = bucket.weights()
        return bucket.grads()  # scaled by the hooks, as they copied it

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        # 1. Compensate the delay. Launches come before landings in a step, so the oldest that is
        #    stored is of the launch that has landed.
        if self.compensate:
            moved = bucket.weights() - state["then0"].flat
            total.add_(
                (moved * total.to(moved.dtype).square()).mul_(self.compensate).to(total.dtype)
            )
        # 2. Leave the signs.
        if self.then == "sign":
            signs = total.sign()
            total.mul_(0).add_(signs)  # 0 times what is not finite is NaN, whose sign would be 0
        bucket.set_grads(total)
