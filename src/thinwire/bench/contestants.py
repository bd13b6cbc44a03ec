"""List who takes part: strategies of ours and rivals, each with its honest best settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from thinwire.core import Codec
from thinwire.errors import BenchError
from thinwire.how import auto, gather, native, two_shot
from thinwire.on import deltas, gradients, nesterov, sgd
from thinwire.strategy import Strategy
from thinwire.strategy.recipes import powersgd, sparseloco
from thinwire.text.words import near
from thinwire.what import cast, feedback, identity, topk, uniform
from thinwire.when import delayed, every, staggered

OURS = "thinwire"
SLOW = 5e8  # bits a second: below, a contestant's settings for slow links are taken
SLICES = {"lanes": 4, "slice_bytes": 1 << 20}
BEGINS_DENSE = {
    "few": 0
}  # its first steps are no measure of how long the others are: all of them are timed


@dataclass(frozen=True)
class Contestant:
    """A row of the tables.

    module: `thinwire`, or one of `thinwire.bench.rivals`. period: steps after which its talk
    repeats. timed: settings that bring it to its steady state before steps are timed, such as an
    early end of a dense beginning, or suit the larger model; slow: those that it wants on links
    below SLOW, as their user would.
    job: fields of a job that it wants otherwise, such as AdamW's betas. same_as: whose loss curve
    it must have, to the last bits of float32 sums; its own is run for the first seed only, to prove
    it.
    """

    name: str
    module: str
    settings: dict[str, Any]
    period: int = 1
    job: dict[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    timed: dict[str, Any] = field(default_factory=dict)
    slow: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.module == OURS


def ours(
    name: str,
    strategy: Strategy,
    period: int = 1,
    attach: dict[str, Any] | None = None,
    **more: Any,
) -> Contestant:
    """Return a strategy of thinwire."""
    return Contestant(
        name, OURS, {"strategy": strategy.to_toml(), "attach": attach or {}}, period, **more
    )


def averaged(
    period: int,
    outer: Any,
    fragments: int = 0,
    tau: int = 1,
    what: Codec | None = None,
    eager: bool = False,
) -> Strategy:
    """4-bit deltas, or others, once in a period, or a fragment of them at a time, merged by halves
    or eager."""
    when = delayed(tau, staggered(fragments, every(period))) if fragments else every(period)
    alpha = 0.5 if fragments and not eager else 0.0
    return Strategy(
        when, what or uniform(4), two_shot(), deltas(outer=outer, alpha=alpha, eager=eager)
    )


def sliced(mebibytes: int, **more: Any) -> dict[str, Any]:
    """Settings of a larger model's flights: slices of 1 MiB would each pay a round trip for little.
    `docs/log.md` has the figures."""
    return {"attach": {"lanes": 4, "slice_bytes": mebibytes << 20, **more}}


def strategy(other: Strategy) -> dict[str, Any]:
    """Return the setting of another strategy, for timed steps."""
    return {"strategy": other.to_toml()}


def whole(what: Codec) -> dict[str, Any]:
    """Gradients over gloo's ring in whole buckets, two at a time: where a line is slow, several
    senders to one receiver lose packets."""
    return {**strategy(Strategy(every(1), what, native(), gradients())), "attach": {"lanes": 2}}


PIECES = {"attach": {"lanes": "auto", "slice_bytes": "auto"}}
"""Of rounds, whose flights all start at once: as the link asks."""
FRAGMENTS = {"attach": {"bucket_bytes": 1 << 20, "lanes": "auto"}}
"""Of fragments: in several buckets each, so that one's codec runs beside another's way over the
wire."""
TWO_BITS = feedback(uniform(2, grid="rise"), decay=0.9)
OUTER_10 = nesterov(0.5, 0.8)
"""Of rounds of 10 steps; those of 30 are timed with it, too: a rate changes what is learnt, not how
long it takes."""
DENSE = "dense, sliced"
DDP = "DDP"
FULL = (
    ours(
        DENSE,
        Strategy(every(1), identity(), two_shot(), gradients()),
        attach=SLICES,
        timed=sliced(8),
        slow=whole(identity()),
    ),
    ours(
        "bf16 gradients",
        Strategy(every(1), cast("bf16"), two_shot(), gradients()),
        attach=SLICES,
        timed=sliced(16),
        slow=whole(cast("bf16")),
    ),
    ours(
        "4-bit gradients, feedback",
        Strategy(every(1), feedback(uniform(4)), two_shot(), gradients()),
        attach=SLICES,
        timed=sliced(16),
        slow=sliced(8, bucket_bytes=8 << 20),
    ),
    ours(
        "top-k 8 of 64 of each update, 2 bits",
        Strategy(
            every(1),
            feedback(topk(8, per=64) >> uniform(2, grid="rise")),
            gather(),
            deltas(outer=sgd(1.0)),
        ),
        job={"betas": (0.2, 0.95)},
    ),
    ours(
        "PowerSGD rank 4",
        powersgd(rank=4, start=10),
        attach={"bucket_bytes": 1 << 30},
        job=BEGINS_DENSE,
        timed=strategy(replace(powersgd(rank=4, start=2), how=auto())),
    ),
    ours("local steps H=10, 4 bits", averaged(10, sgd(1.0)), 10, timed=PIECES),
    ours("DiLoCo H=10, 4 bits", averaged(10, OUTER_10), 10, timed=PIECES),
    ours("DiLoCo H=10, 2 bits, feedback", averaged(10, OUTER_10, what=TWO_BITS), 10, timed=PIECES),
    ours(
        "eager streaming DiLoCo H=10, 2 bits",
        averaged(10, OUTER_10, fragments=5, tau=2, what=TWO_BITS, eager=True),
        10,
        timed=FRAGMENTS,
    ),
    ours(
        "DiLoCo H=30, 4 bits",
        averaged(30, nesterov(0.9, 0.6)),
        30,
        timed=strategy(averaged(30, OUTER_10)) | PIECES,
    ),
    ours(
        "Streaming DiLoCo H=30, 4 bits",
        averaged(30, nesterov(0.5, 0.8), fragments=3, tau=2),
        30,
        timed=PIECES,
    ),
    ours("SparseLoCo-like H=15", sparseloco(period=15, lr=1.0), 15, timed=PIECES),
    Contestant(DDP, "ddp", {"hook": "none"}, same_as=DENSE),
    Contestant("DDP, fp16 hook", "ddp", {"hook": "fp16"}),
    Contestant(
        "DDP, PowerSGD rank 4",
        "ddp",
        {"hook": "powersgd", "rank": 4, "start": 10, "bucket_mb": 1000},
        job=BEGINS_DENSE,
        timed={"start": 2},
    ),
    Contestant(
        "torch post-local SGD H=10",
        "post_local",
        {"period": 10, "start": 100},
        10,
        job=BEGINS_DENSE,
        timed={"start": 2},
    ),
    Contestant("accelerate LocalSGD H=10", "local_sgd", {"period": 10}, 10),
    Contestant(
        "torchft DiLoCo H=10",
        "torchft_diloco",
        {"period": 10, "lr": 0.5, "momentum": 0.8, "fragments": 1},
        10,
    ),
    Contestant(
        "torchft streaming DiLoCo H=10",
        "torchft_diloco",
        {"period": 10, "lr": 0.5, "momentum": 0.8, "fragments": 2, "delay": 1, "alpha": 0.0},
        10,
    ),
    Contestant(
        "torchft DiLoCo H=30",
        "torchft_diloco",
        {"period": 30, "lr": 0.9, "momentum": 0.6, "fragments": 1},
        30,
        timed={"lr": 0.5, "momentum": 0.8},
    ),
    Contestant("hivemind, 10 steps", "hivemind_avg", {"period": 10, "compression": "float16"}, 10),
    Contestant("DeepSpeed ZeRO-1", "deepspeed_zero", {"stage": 1}, same_as=DENSE),
    Contestant("Horovod, fp16", "horovod_ring", {"compression": "fp16"}),
)
QUICK = tuple(
    each
    for each in FULL
    if each.name
    in (
        DENSE,
        "4-bit gradients, feedback",
        "PowerSGD rank 4",
        "local steps H=10, 4 bits",
        DDP,
        "DDP, fp16 hook",
        "DDP, PowerSGD rank 4",
    )
)


def chosen(names: list[str], contestants: tuple[Contestant, ...]) -> tuple[Contestant, ...]:
    """Contestants by name.

    Raises:
        BenchError: there is none of that name.
    """
    by_name = {each.name: each for each in contestants}
    if unknown := [name for name in names if name not in by_name]:
        raise BenchError(
            f"no contestant is called {unknown[0]!r}{near(unknown[0], by_name)} There are: "
            f"{'; '.join(by_name)}"
        )
    return tuple(by_name[name] for name in names)
