"""A strategy survives TOML and repr, and what cannot be is refused with all its reasons at once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire import how, on, recipes, what, when
from thinwire.core.component import components
from thinwire.errors import StrategyError
from thinwire.how import gather, hierarchical, native, two_shot
from thinwire.on import deltas, gradients, momentum, nesterov, optim, parameters, sgd
from thinwire.strategy import Strategy
from thinwire.what import (
    by_role,
    cast,
    feedback,
    identity,
    lowrank,
    randomk,
    threshold,
    topk,
    uniform,
)
from thinwire.when import delayed, every, growing, staggered, thinning, warmup

NAMES: dict[str, Any] = {
    "Strategy": Strategy,
    **{name: getattr(m, name) for m in (when, what, how, on) for name in m.__all__},
}


def same_after_toml_and_repr(strategy: Strategy) -> bool:
    return (
        Strategy.from_toml(strategy.to_toml()) == strategy
        and eval(repr(strategy), dict(NAMES)) == strategy
    )


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_survive_toml_and_repr(name: str) -> None:
    needs = {
        "two_level": {"node": 4},
        "post_local_sgd": {"start": 100},
        "onebit_adam": {"start": 100},
        "zero_one_adam": {"until": 1000},
        "for_link": {"gbits": 1.0},
    }
    assert same_after_toml_and_repr(recipes.names()[name](**needs.get(name, {})))


shares = st.floats(0.001, 1.0)
schedules = st.one_of(
    st.builds(every, st.integers(1, 50)),
    st.builds(lambda n, tau: delayed(tau * n, every(n)), st.integers(1, 9), st.integers(0, 4)),
    st.builds(lambda n, steps: warmup(steps, every(n)), st.integers(1, 9), st.integers(0, 99)),
    st.builds(
        lambda n, parts: staggered(min(parts, n), every(n)), st.integers(1, 50), st.integers(1, 9)
    ),
    st.builds(
        lambda first, more, rounds, f: growing(first, first + more, rounds, f),
        *[st.integers(1, 9)] * 3,
        st.floats(1.01, 9),
    ),
    st.builds(
        lambda until, kappa: thinning(until, every(1), kappa),
        st.integers(1, 999),
        st.integers(1, 99),
    ),
)
coders = st.one_of(
    st.just(identity()),
    st.builds(cast, st.sampled_from(["bf16", "fp16"])),
    st.builds(
        uniform,
        st.sampled_from([8, 4, 2]),
        st.integers(0, 512),
        st.sampled_from(["nearest", "stochastic"]),
        st.none() | st.floats(1e-9, 9),
    ),
)
transforms = st.one_of(
    st.builds(topk, st.integers(1, 64), st.integers(64, 4096)),
    st.builds(topk, shares),
    st.builds(threshold, st.floats(1e-12, 1e12)),
    st.builds(randomk, st.integers(1, 999) | shares, st.booleans()),
)
bare = st.one_of(
    coders,
    transforms,
    st.builds(lambda a, b: a >> b, transforms, coders),
    st.builds(lambda a, b, c: a >> b >> c, transforms, transforms, coders),
)
codecs = st.one_of(
    bare,
    bare.filter(lambda codec: codec.traits.lossy).flatmap(
        lambda codec: st.builds(feedback, st.just(codec), shares)
    ),
    st.builds(feedback, st.builds(lowrank, st.integers(1, 64)), shares),
    st.builds(
        by_role, matrix=st.builds(lowrank, st.integers(1, 9)) | bare, embedding=bare, vector=bare
    ),
)
routes = st.one_of(
    st.just(gather()),
    st.just(native()),
    st.builds(two_shot, st.none() | coders.filter(lambda codec: codec.traits.lossy).map(feedback)),
    st.builds(
        hierarchical,
        st.just(native()) | st.just((two_shot(), cast("bf16"))),
        st.just(gather()),
        st.integers(1, 8),
    ),
)
averages = st.sampled_from([optim("AdamW", "lr=0.3, betas=(0.9, 0.95)"), optim("SGD")])
outers = st.one_of(
    st.builds(sgd, st.floats(1e-6, 9), st.floats(0, 0.99)),
    st.builds(nesterov, st.floats(1e-6, 9), st.floats(0.01, 0.99)),
    st.just(nesterov()),
)
places = st.sampled_from([None, "cpu"])
kept = {"store": st.sampled_from([None, "bf16"]), "device": places}
targets = st.one_of(
    st.builds(
        gradients,
        st.sampled_from(["mean", "sum"]),
        st.sampled_from([None, "sign"]),
        st.just(0.0) | st.floats(0, 9),
    ),
    st.just(parameters()),
    st.builds(deltas, outers, st.floats(0, 1), **kept),
    st.builds(deltas, outers, eager=st.booleans(), **kept),
    st.builds(deltas, averages, st.floats(0, 1), device=places),
    st.builds(deltas, averages, eager=st.booleans(), device=places),
    st.builds(momentum, st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)), st.floats(1e-12, 1)),
)


@given(schedules, codecs, routes, targets)
def test_any_strategy_survives_toml_and_repr_or_is_refused_with_reasons(
    when: Any, what: Any, how: Any, on: Any
) -> None:
    erased = (
        what.traits.partial
        and on.accepts_mask
        and not how.carries_mask
        and f"Cannot use {what!r} over {how!r} on {on!r}: the route does not carry the mask"
    )
    expected = [reason for reason in (how.refuses(what), on.refuses(when, what), erased) if reason]
    if expected:
        with pytest.raises(StrategyError) as caught:
            Strategy(when, what, how, on)
        assert len(caught.value.reasons) == len(expected)
        assert all(map(str.startswith, caught.value.reasons, expected))
    else:
        assert same_after_toml_and_repr(Strategy(when, what, how, on))


def test_what_is_left_out_has_its_default() -> None:
    assert (
        Strategy.from_toml("")
        == Strategy()
        == Strategy(every(1), identity(), native(), gradients())
    )
    assert Strategy.from_toml('[what]\nuse = "cast"') == Strategy(what=cast("bf16"))


LEVELS = '[how]\nuse = "hierarchical"\nnode = 2\nouter = {use = "native"}\n'


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("when = [", "not TOML"),
        (
            '[wen]\nuse = "every"',
            "wen: a strategy has the slots when, what, how and on; did you mean 'when'?",
        ),
        (
            (
                '[when]\nuse = "staggered"\nparts = 2\ninner = {use = "warmup", steps = 1, inner '
                '= {use = "every"}}'
            ),
            "when.inner: expected every, found warmup(",
        ),
        ("when = 3", 'when: expected a table such as {use = "…"}, found 3'),
        (
            "[when]\nn = 3",
            (
                "when: the key 'use' is missing; it names the component, one of by_speed, "
                "delayed, every"
            ),
        ),
        (
            '[what]\nuse = "topkk"\nk = 3',
            "what: what: no component is called 'topkk'. Did you mean topk?",
        ),
        ('[what]\nuse = "every"', "what: what: no component is called 'every'"),
        ('[when]\nuse = "every"\nm = 3', "when.m: every has no such key; it has: n"),
        (
            '[what]\nuse = "uniform"\nbitz = 4',
            "what.bitz: uniform has no such key; did you mean 'bits'?",
        ),
        ('[when]\nuse = "every"\nn = "3"', "when.n: expected int, found '3'"),
        ('[when]\nuse = "every"\nn = true', "when.n: expected int, found True"),
        ('[when]\nuse = "every"\nn = 2.5', "when.n: expected int, found 2.5"),
        ('[what]\nuse = "uniform"\nbits = 9', "what.bits: 9 is not one of 8, 7, 6"),
        ('[what]\nuse = "uniform"\nbits = 4.0', "what.bits: 4.0 is not one of 8, 7, 6"),
        ('[what]\nuse = "randomk"\nk = 3\nunbiased = 1', "what.unbiased: expected bool, found 1"),
        ('[what]\nuse = "topk"', "what.k: topk needs it"),
        ('[what]\nuse = "topk"\nk = "x"', "what.k: expected int or float, found 'x'"),
        (
            '[how]\nuse = "two_shot"\nback = 3',
            'how.back: expected a table such as {use = "…"}, found 3',
        ),
        (
            LEVELS + 'inner = {use = "two_shot"}',
            "how: hierarchical(inner=two_shot(back=None)): give",
        ),
        ('[what]\nuse = "topk"\nk = 0', "what: topk(k=0): a count is at least 1"),
        (
            LEVELS + 'inner = [{use = "native"}]',
            "how.inner: expected 2 items, found 1",
        ),
        (
            '[how]\nuse = "two_shot"\nback = {use = "cast", dtype = "fp8"}',
            "how.back.dtype: 'fp8' is not one of 'bf16', 'fp16'",
        ),
        (
            '[on]\nuse = "deltas"\nouter = {use = "sgd", lr = -1.0}',
            "on.outer: sgd(lr=-1.0, momentum=0.0): an outer rate is positive",
        ),
    ],
)
def test_bad_toml_is_told_with_its_path(toml: str, told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy.from_toml(toml)
    assert told in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy.from_toml(
            '[when]\nuse = "every"\nn = "x"\nm = 1\n[what]\nuse = "topk"\n[how]\nuse = '
            '"rinng"\n[off]\nuse = "x"'
        )
    assert [reason.split(":")[0] for reason in caught.value.reasons] == [
        "when.n",
        "when.m",
        "what.k",
        "how",
        "off",
    ]


def test_integers_do_for_floats_and_lists_for_pairs() -> None:
    strategy = Strategy.from_toml(
        '[on]\nuse = "deltas"\nouter = {use = "sgd", lr = 1}\n'
        + LEVELS
        + 'inner = [{use = "gather"}, {use = "cast"}]'
    )
    assert strategy.on == deltas(outer=sgd(1.0))
    assert strategy.how == hierarchical((gather(), cast()), native(), 2)


def test_a_value_in_the_wrong_slot_is_refused() -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy(when=identity(), what="topk")  # type: ignore[arg-type]
    assert len(caught.value.reasons) == 2
    assert (
        "this slot takes a schedule from thinwire.when, such as every(n=1)"
        in caught.value.reasons[0]
    )


def test_two_pairs_that_do_not_fit_are_both_told() -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy(every(4), topk(0.1), native(), parameters())
    assert len(caught.value.reasons) == 2


def test_a_strategy_is_a_value() -> None:
    assert hash(Strategy()) == hash(Strategy())
    with pytest.raises(AttributeError):
        Strategy().when = every(2)  # type: ignore[misc]
    assert set(components("what")) == set(what.__all__) - {"Transform"}


def test_fragments_of_parameters_are_never_equal_all_at_once() -> None:
    """`thinwire train` asks before it checks at the end of a run."""
    assert not Strategy(staggered(2, every(4)), on=parameters()).compares
    assert Strategy(staggered(2, every(4)), on=deltas()).compares
    assert Strategy(every(4), on=parameters()).compares
