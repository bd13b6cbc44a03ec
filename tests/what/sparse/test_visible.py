"""Updates that change the 16-bit view of the base, PULSELoCo's row, and base values in general."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import thinwire
from tests.threads import on_threads
from thinwire import Strategy, recipes
from thinwire.core import Part, RankContext, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import gather, two_shot
from thinwire.on import deltas, gradients, parameters, sgd
from thinwire.strategy import fingerprint
from thinwire.what import by_role, feedback, topk, uniform, visible
from thinwire.when import every

N = 600
SPEC = Spec((Part("w", (N,), 0, "vector"),), 0, N, torch.float32)
ROW = Strategy(every(2), feedback(visible()), gather(), deltas(outer=sgd(0.7)))


def _base() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(0))


def _updates(seed: int, relative: float = 2**-8) -> Tensor:
    """Some larger than half a step of bf16 there, some smaller."""
    sizes = torch.randn(N, generator=torch.Generator().manual_seed(seed))
    return sizes * _base().abs() * relative


def _state(world: int = 1, codec: Any = None) -> tuple[State, RankContext]:
    ctx = RankContext(0, tuple(range(world)), step=0, seed=0)
    state = (codec or visible()).init(SPEC, ctx)
    for path, leaf in state.walk():
        if path.endswith("base"):
            leaf.value = _base()
    return state, ctx


@pytest.mark.parametrize("view", ["bf16", "fp16"])
@pytest.mark.parametrize("world", [1, 3])
def test_what_changes_the_view_is_sent_exactly_and_nothing_else(view: Any, world: int) -> None:
    codec, dtype = visible(view), {"bf16": torch.bfloat16, "fp16": torch.float16}[view]
    state, ctx = _state(world, codec)
    x = _updates(1, {"bf16": 2**-8, "fp16": 2**-11}[view]) / world
    shows = (_base() - world * x).to(dtype) != _base().to(dtype)
    assert 50 < int(shows.sum()) < N - 50
    payload = codec.encode(x, SPEC, state, ctx)
    got = codec.decode(payload, SPEC, state, ctx, 0)
    assert torch.equal(got, torch.where(shows, x, torch.zeros(N)))
    count = int(shows.sum())
    assert payload.numel() == 8 + codec.side_nbytes(SPEC, count) + 4 * count


def test_nothing_visible_is_no_bytes_and_what_is_not_finite_is_sent() -> None:
    state, ctx = _state()
    # exact in bf16, so that no value lies beside a boundary of rounding
    state["base"].value = _base().bfloat16().float()
    assert visible().encode(_base() * 1e-4, SPEC, state, ctx).numel() == 0
    x = torch.zeros(N)
    x[3], x[7] = float("nan"), float("inf")
    got = visible().decode(visible().encode(x, SPEC, state, ctx), SPEC, state, ctx, 0)
    assert got[3].isnan()
    assert got[7].isinf()
    assert not got[[i for i in range(N) if i not in (3, 7)]].any()


def test_the_residual_keeps_what_does_not_show_and_the_view_loses_nothing() -> None:
    """With one rank, the anchor's bf16 view after a landing is that of the exact update."""
    codec = feedback(visible())
    state, ctx = _state(codec=codec)
    leaf = state.child("inner")["base"]
    exact = leaf.value.clone()
    for seed in range(20):
        x = _updates(seed, 2**-9)
        exact = exact - x
        flow = codec.rounds(x, SPEC, state, ctx)
        packet = next(flow)
        sent = packet.open(packet.payload.clone(), 0)
        kept = state["residual"].value
        assert not (sent.bool() & kept.bool()).any()
        anchor = leaf.value
        assert torch.equal((anchor - sent).bfloat16(), (anchor - sent - kept).bfloat16())
        leaf.value = anchor - sent
    torch.testing.assert_close(leaf.value - state["residual"].value, exact, rtol=0, atol=1e-6)


# -- in training


def _model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    generator = torch.Generator().manual_seed(0)  # of its own: ranks are threads
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 3)
    return model


def _steps(model: torch.nn.Module, optimizer: Any, rank: int, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + rank))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def _trained(
    driver: Any, strategy: Strategy, steps: range, rate: float = 0.002, held: Any = None
) -> dict[str, Any]:
    """What a rank holds after some steps; from saved state where it is given."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.5)
    with thinwire.attach(model, optimizer, strategy, bucket_bytes=120, driver=driver) as sync:
        assert len(sync.buckets) > 1
        if held is not None:
            model.load_state_dict(held[driver.rank]["model"])
            optimizer.load_state_dict(held[driver.rank]["optimizer"])
            sync.load_state_dict(held[driver.rank]["sync"])
        _steps(model, optimizer, driver.rank, steps)
        leaves = [
            (path, leaf, bucket, part)
            for bucket in sync.buckets
            for part in bucket.slices
            for path, leaf in part.state.walk()
        ]
        return {
            "model": copy.deepcopy(model.state_dict()),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "sync": sync.state_dict(),
            "anchors": [bucket.state["anchor"].flat.clone() for bucket in sync.buckets],
            "residuals": [leaf.flat for path, leaf, _, _ in leaves if path.endswith("residual")],
            "bases": [leaf.flat for path, leaf, _, _ in leaves if path.endswith("base")],
            "sent": sync.report().sent_bytes,
        }


def _all(world: int, *args: Any, **settings: Any) -> dict[int, dict[str, Any]]:
    got = on_threads(world, lambda driver: _trained(driver, *args, **settings))
    for each in got.values():
        assert not isinstance(each, BaseException), each
    return got


def test_ranks_compare_with_the_anchor_and_stay_equal() -> None:
    before, after = _all(3, ROW, range(3)), _all(3, ROW, range(4))
    for rank in range(3):
        # the second launch, at step 3, compared with the anchor that the first landing left
        assert all(map(torch.equal, after[rank]["bases"], before[rank]["anchors"]))
        assert all(map(torch.equal, after[rank]["anchors"], after[0]["anchors"]))
        assert any(residual.any() for residual in after[rank]["residuals"])


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    whole = _all(3, ROW, range(7))
    parts = _all(3, ROW, range(5, 7), held=_all(3, ROW, range(5)))
    for rank in range(3):
        for key in ("anchors", "residuals", "bases"):
            assert all(map(torch.equal, parts[rank][key], whole[rank][key]))
        for name, value in whole[rank]["model"].items():
            assert torch.equal(parts[rank]["model"][name], value)


def test_small_updates_cost_few_bytes_and_tiny_ones_none() -> None:
    sent = [_all(3, ROW, range(4), rate=rate)[0]["sent"] for rate in (0.1, 1e-3, 1e-7)]
    assert sent[0] > sent[1] > 5 * sent[2]


def test_a_base_of_a_role_is_found_by_parameter_name() -> None:
    """`by_role` lays the parameters of a role side by side, so their places in a bucket differ."""
    what = by_role(matrix=feedback(visible()), vector=feedback(uniform(8)))
    split = Strategy(every(2), what, gather(), deltas(outer=sgd(0.7)))
    before, after = _all(3, split, range(3)), _all(3, split, range(4))
    names = ("0.weight", "2.weight")
    for saved in (before[0]["sync"], after[0]["sync"]):
        assert [key for key in saved if "base" in key]
    anchors = {
        key.rpartition("|")[2]: value
        for key, value in before[0]["sync"].items()
        if "|on/anchor|" in key
    }
    bases = {
        key.rpartition("|")[2]: value for key, value in after[0]["sync"].items() if "base|" in key
    }
    assert set(bases) == set(names)
    assert all(torch.equal(bases[name], anchors[name]) for name in names)


def test_a_target_without_base_values_is_refused() -> None:
    for on in (gradients(), parameters()):
        with pytest.raises(StrategyError, match=r"Cannot use .*visible.*Use deltas"):
            Strategy(every(2), feedback(visible()), gather(), on)
    with pytest.raises(StrategyError, match=r"Cannot use .*visible"):
        Strategy(every(1), uniform(4), two_shot(back=feedback(visible())), gradients())
    with pytest.raises(StrategyError, match="choose 'bf16' or 'fp16'"):
        visible("fp8")  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match=r"a core has none\. Put it on the left"):
        topk(0.5) >> visible()


def test_the_recipe_is_the_row() -> None:
    assert recipes.pulseloco(period=4).what == feedback(visible())
    assert fingerprint(recipes.pulseloco()) != fingerprint(recipes.diloco(period=8))
