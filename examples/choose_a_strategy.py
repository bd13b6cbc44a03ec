"""Choose a strategy before you train: print what it sends, what is refused, and its TOML.

    python examples/choose_a_strategy.py

Nothing trains, and no ranks are needed: a strategy is a frozen value, and what it sends follows
from its route and its codec.
"""

import os
from statistics import fmean

import torch

from thinwire import Strategy, recipes
from thinwire.core import Part, RankContext, Spec
from thinwire.errors import StrategyError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, nesterov, parameters
from thinwire.what import feedback, lowrank, topk, uniform
from thinwire.when import delayed, every

RANKS = tuple(range(8))
SHAPE = (1024, 4096)  # a matrix of a transformer

FIVE = {
    "plain data parallelism": recipes.dense(),
    "low rank, every step": Strategy(
        what=feedback(lowrank(4))
    ),  # a slot that is left out has its default
    "few entries, few bits": Strategy(
        what=feedback(topk(64, per=4096) >> uniform(4)), how=gather()
    ),
    "rare": recipes.diloco(period=100),
    "rare, few bits, while training goes on": Strategy(
        when=delayed(5, every(100)),
        what=uniform(4),
        how=two_shot(),
        on=deltas(outer=nesterov(0.7, 0.9), alpha=0.5),
    ),
}


def bytes_a_parameter_and_step(strategy: Strategy) -> float:
    """What a rank hands to the wire, the mean over ranks, in closed form. In each period of the
    schedule all is sent once."""
    numel = SHAPE[0] * SHAPE[1]
    spec = Spec((Part("matrix", SHAPE, 0, "matrix"),), begin=0, numel=numel, dtype=torch.float32)
    sent = [
        strategy.how.sent_nbytes(strategy.what, spec, RankContext(rank, RANKS, step=0, seed=0))
        for rank in RANKS
    ]
    return fmean(nbytes for nbytes in sent if nbytes is not None) / numel / strategy.when.period


def main() -> None:
    dense = bytes_a_parameter_and_step(recipes.dense())
    print(
        f"Five strategies, and what each of {len(RANKS)} ranks sends of a {SHAPE[0]} x {SHAPE[1]} "
        "matrix:"
    )
    for name, strategy in FIVE.items():
        sent = bytes_a_parameter_and_step(strategy)
        print(
            f"\n{name}\n  {strategy!r}\n  {sent:.5f} bytes a parameter and step, "
            f"{dense / sent:,.1f}x fewer than dense fp32"
        )

    print("\nWhat cannot be is refused where it is written:")
    for refused in (
        lambda: Strategy(what=topk(0.01)),
        lambda: Strategy(when=every(16), what=uniform(4), how=two_shot(), on=parameters()),
        lambda: Strategy(when=delayed(3, every(2)), on=gradients()),
        lambda: uniform(bits=9),
    ):
        try:
            refused()
        except StrategyError as error:
            print(f"\n  {error}")

    text = FIVE["few entries, few bits"].to_toml()
    print(f"\nWritten down as TOML, which thinwire train --strategy FILE.toml reads:\n\n{text}")
    same = all(Strategy.from_toml(strategy.to_toml()) == strategy for strategy in FIVE.values())
    print(f"read back, all five are {'equal' if same else 'NOT equal'}")


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one rank says it
        main()
