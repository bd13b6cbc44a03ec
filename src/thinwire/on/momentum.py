"""Send Adam's first moment, so that one bit a value is enough.

Adam with a compressed gradient goes wrong: its variance averages the squares of the compression
error. Once the variance hardly moves, freeze it. Then Adam is SGD with momentum under a fixed
scaling of each entry, which error feedback can follow. Steps:

    dense ticks    G = sum of s_k g_k travels, exact
                   m = b1 m + (1 - b1) G,  v = b2 v + (1 - b2) G²
    other ticks    m = sum of (b1 s_k m + (1 - b1) s_k g_k) travels, compressed; v stays as it is
    both           u = m / (1 - b1^t) / (sqrt(v / (1 - b2^n)) + eps) goes to `.grad`

t counts steps and n dense ones; s_k are the ranks' weights, which sum to 1. Once a compressed m has
landed, an entry with v = 0 has m = 0, and u is clamped to [-bound, bound]: a sign cannot encode 0,
and v may be far smaller than the square of what a sign decodes to. A plain `torch.optim.SGD(lr)`
then does w = w - lr u, and its weight decay is AdamW's. (1-bit Adam, Tang et al. 2021,
arXiv:2102.02888; with a variance refreshed now and then 0/1 Adam, Lu et al. 2022,
arXiv:2202.06009.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire.core import Bucket, Codec, Leaf, Schedule, State, Target
from thinwire.core.component import spelled_out
from thinwire.errors import StrategyError
from thinwire.kernels import fast


@dataclass(frozen=True, repr=False)
class momentum(Target):
    """A target that puts Adam's update into `.grad`; a step is a backward pass.

    The optimiser is a plain `torch.optim.SGD(lr, weight_decay=…)`.

    Args:
        betas: how much of the mean and of the variance is kept from step to step, each in [0, 1).
        eps: added to the root of the variance, above 0.
        bound: the largest |u| once a compressed m has landed, above 0; entries with v = 0 then stay
            where they are. The default is Adam's own bound for its usual betas. `None` limits
            nothing: the published recurrence. Until then u is AdamW's in any case.

    Raises:
        StrategyError: an argument outside the above. With a strategy: a schedule that does not
            begin with dense ticks, from which the variance is learnt, a delay, or a staggered
            schedule.
        AttachError: (at attach) an optimiser other than torch's SGD (or a subclass) without
            momentum, or a GradScaler.

    A mean that is not finite leaves both averages as they were, and NaN in `.grad`.

    Example:
        >>> from thinwire.what import feedback, sign
        >>> from thinwire.when import every, warmup
        >>> momentum().refuses(warmup(100, every(1)), feedback(sign()))
        >>> print(momentum().refuses(every(1), feedback(sign()))[:75])
        Cannot use every(n=1) on momentum(betas=(0.9, 0.999), eps=1e-08): it begins
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    bound: float | None = (
        # Adam's own is (1 - b1) / sqrt(1 - b2) = 3.16 for its usual betas (Kingma & Ba 2015,
        # section 2.1)
        3.2
    )
    clock: ClassVar[Literal["backward", "step"]] = "backward"

    def __post_init__(self) -> None:
        reasons = []
        if not all(0 <= beta < 1 for beta in self.betas):
            reasons.append(f"momentum(betas={self.betas}): each lies in [0, 1)")
        if not 0 < self.eps < float("inf"):
            reasons.append(f"momentum(eps={self.eps}): it is above 0, and finite")
        if self.bound is not None and not 0 < self.bound < float("inf"):
            reasons.append(
                f"momentum(bound={self.bound}): it is above 0, and finite; None for no bound"
            )
        if reasons:
            raise StrategyError(reasons)

    def __repr__(self) -> str:
        return spelled_out(self, 2)

    @property
    def updates(self) -> bool:
        return True

    @property
    def homogeneous(self) -> bool:
        return False

    def refuses(self, when: Schedule, what: Codec) -> str | None:
        if when.fragments > 1:
            return (
                f"Cannot use {when!r} on {self!r}: an optimiser step needs every momentum. Use "
                "warmup(steps, every(n))"
            )
        if when.delay:
            return (
                f"Cannot use {when!r} on {self!r}: ranks mix their gradients into the newest "
                "momentum, which has not landed. Use no delay"
            )
        if not when.tick(0, 1).dense:
            return (
                f"Cannot use {when!r} on {self!r}: it begins without a variance, which is learnt "
                "from exact gradients. "
                "Use warmup(steps, …), with 15 to 20 % of the run as steps"
            )
        return None

    def init(self, bucket: Bucket) -> State:
        zeros = torch.zeros_like(bucket.weights())
        # Counts are alike for all parameters, and saved by parameter: a state survives another
        # layout.
        counts = {
            str(i): self._counts(part.name, zeros.device)
            for i, part in enumerate(bucket.spec.parts)
        }
        return State(
            {
                "mean": Leaf(zeros, "replicated", bucket.spec),
                "variance": Leaf(zeros, "replicated", bucket.spec),
            },
            counts,
        )

    def read(self, bucket: Bucket, state: State, weight: float) -> Tensor:
        # 1. Which step launches: the next one of the schedule after the last launch. Whether it is
        #    dense decides what travels.
        count = state.child("0")
        step = int(count["step"].value) + 1
        while not bucket.when.tick(step, 1).launch:
            step += 1
        for child in state.children.values():
            child["step"].value = torch.tensor(step)
        # 2. x is s_k g_k, scaled by the hooks. Between dense ticks it becomes b1 s_k m + (1 - b1)
        #    s_k g_k; the ranks' s_k sum to 1, so the sum is the new m.
        x = bucket.grads()
        if not bucket.when.tick(step, 1).dense:
            x.mul_(1 - self.betas[0]).add_(
                state["mean"].flat.to(x.dtype), alpha=self.betas[0] * weight
            )
        return x

    def write(self, bucket: Bucket, total: Tensor, state: State) -> None:
        (b1, b2), mean, variance = self.betas, state["mean"], state["variance"]
        count = state.child("0")
        # 1. What has landed, G or m. A mean that is not finite counts as no step: `finite` is a
        #    tensor, so that nothing waits for a GPU.
        new = total.to(mean.value.dtype, copy=True)
        finite = fast.all_finite(new)
        steps = count["steps"].value + finite
        refreshed = count["refreshed"].value
        # 2. A dense tick: v and m from G. Else m has landed itself, and v stays.
        if bucket.when.tick(int(count["step"].value), 1).dense:
            variance.value = torch.where(
                finite, (variance.flat * b2).addcmul_(new, new, value=1 - b2), variance.flat
            )
            new = mean.flat.lerp(new, 1 - b1)
            refreshed = refreshed + finite
        elif self.bound is not None:
            # No gradient was ever seen there: what a codec decodes to is its error.
            new.masked_fill_(variance.flat == 0, 0)
        mean.value = torch.where(finite, new, mean.flat)
        for child in state.children.values():
            child["steps"].value, child["refreshed"].value = steps, refreshed
        # 3. u, with the bias of both averages corrected, as in Adam.
        scale = (variance.flat.sqrt() / (1 - b2**refreshed).sqrt()).add_(self.eps)
        update = mean.flat / scale / (1 - b1**steps)
        if self.bound is not None:
            # All dense so far: m is exact, and u needs no bound.
            limit = torch.where(steps == refreshed, torch.inf, self.bound).to(update.dtype)
            update.clamp_(-limit, limit)
        total.copy_(torch.where(finite, update, torch.nan))
        bucket.set_grads(total)

    def _counts(self, name: str, device: torch.device) -> State:
        """Make the counts of a parameter.

        "step" is the schedule's step of the last launch, on the host; "steps" and "refreshed" count
        the steps and dense steps that were finite, where the values are.
        """
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64
        leaves = {
            key: Leaf(torch.zeros((), dtype=dtype, device=device), "replicated", part=name)
            for key in ("steps", "refreshed")
        }
        return State({"step": Leaf(torch.tensor(-1), "replicated", part=name), **leaves})
