from typing import Any

import pytest
import torch

import thinwire
from tests.threads import on_threads
from thinwire.core import Driver, Part, RankContext, Spec
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather, native, two_shot
from thinwire.strategy import Strategy
from thinwire.what import by_rank, cast, feedback, lowrank, topk, uniform

SPEC = Spec((Part("w", (64, 64), 0, "matrix"),), 0, 4096, torch.float32)


@pytest.mark.parametrize(("route", "own"), [(gather(), 2), (two_shot(), None)], ids=repr)
def test_each_rank_sends_its_own_width_and_all_hear_the_same(route: Any, own: int | None) -> None:
    codec, world = by_rank((uniform(8), uniform(8), uniform(2))), (0, 1, 2)
    xs = [torch.randn(4096, generator=torch.Generator().manual_seed(rank)) for rank in world]
    contexts = [RankContext(rank, world, 0, 0) for rank in world]
    flights = {
        rank: route.carry(
            codec, xs[rank].clone(), SPEC, route.init(codec, SPEC, contexts[rank]), contexts[rank]
        )
        for rank in world
    }
    sent: dict[int, float] = {}
    outcomes = run(flights, sent)
    assert all(torch.equal(outcomes[rank].total, outcomes[0].total) for rank in world)
    assert sent[2] < 0.4 * sent[0]
    if own:
        assert [sent[rank] for rank in world] == [
            own * (8 + codec.codecs[rank].nbytes(SPEC)) for rank in world
        ]
        errors = [float((outcomes[rank].sent() - xs[rank]).norm()) for rank in world]  # type: ignore[misc]
        assert max(errors[:2]) < 0.05 * errors[2], "only the rank of 2 bits loses much"


def test_feedback_goes_around_it() -> None:
    def work(driver: Driver) -> tuple[torch.Tensor, float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = Strategy(what=feedback(by_rank((uniform(4), topk(0.01)))), how=gather())
        with thinwire.attach(model, optimizer, strategy, driver=driver) as sync:
            for step in range(4):
                draws = torch.Generator().manual_seed(10 * step + driver.rank)
                model(torch.randn(8, 64, generator=draws)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            sync.check()
            return model.weight.detach().clone(), sync.report().sent_bytes

    results = on_threads(2, work)
    assert torch.equal(results[0][0], results[1][0])
    assert results[1][1] < 0.2 * results[0][1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StrategyError, match="name a codec for each rank"):
        by_rank(())
    for codec in (lowrank(2), feedback(topk(1))):
        with pytest.raises(StrategyError, match="must send one packet and keep no state"):
            by_rank((cast(), codec))  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="it is by rank already"):
        by_rank((cast(), by_rank((cast(),))))
    with pytest.raises(StrategyError, match="cannot be added unopened"):
        Strategy(what=by_rank((cast(), cast())), how=native())


def test_a_rank_without_a_codec_is_told_at_attach() -> None:
    def work(driver: Driver) -> None:
        model = torch.nn.Linear(4, 4)
        thinwire.attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            Strategy(what=by_rank((uniform(8), uniform(4))), how=gather()),
            driver=driver,
        )

    results = on_threads(3, work)
    assert all(
        "names codecs for ranks 0 to 1, and there is a rank 2" in str(result)
        for result in results.values()
    )
