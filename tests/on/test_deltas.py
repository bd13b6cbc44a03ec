import pytest
import torch

from tests.fakes import FakeBucket
from thinwire.core import Outer, Schedule
from thinwire.errors import StrategyError
from thinwire.on import deltas, nesterov, optim, parameters, sgd
from thinwire.on._anchor import twin
from thinwire.strategy import Strategy
from thinwire.when import delayed, every, staggered, warmup


def exchange(
    target: deltas, buckets: list[FakeBucket], shares: list[float], rounds: int, move: torch.Tensor
) -> list[torch.Tensor]:
    """Some rounds of local moves (rank r moves by r + 1 times `move`), each followed by a weighted
    sum of deltas; the anchors."""
    states = [target.init(bucket) for bucket in buckets]
    anchors = []
    for _ in range(rounds):
        for rank, bucket in enumerate(buckets):
            bucket.flat = bucket.flat - (rank + 1) * move
        total = sum(
            target.read(b, s, share) for b, s, share in zip(buckets, states, shares, strict=True)
        )
        assert isinstance(total, torch.Tensor)
        for bucket, state in zip(buckets, states, strict=True):
            target.write(bucket, total, state)
        common = [
            target.common(bucket, state) for bucket, state in zip(buckets, states, strict=True)
        ]
        assert all(torch.equal(anchor, common[0]) for anchor in common)
        anchors.append(common[0])
    return anchors


def test_plain_averaging_puts_all_on_the_weighted_mean_of_their_parameters() -> None:
    buckets = [FakeBucket(torch.zeros(4)) for _ in range(2)]
    anchors = exchange(deltas(outer=sgd(1.0)), buckets, [0.25, 0.75], 1, torch.ones(4))
    assert anchors[0].tolist() == [-1.75] * 4
    assert all(bucket.flat.tolist() == [-1.75] * 4 for bucket in buckets)


def test_the_outer_optimiser_sees_the_mean_delta_as_a_gradient() -> None:
    move = torch.tensor([1.0, -2.0, 0.5])
    param = torch.nn.Parameter(torch.zeros(3))
    theirs = torch.optim.SGD([param], lr=0.7, momentum=0.9, nesterov=True)
    for ours in exchange(
        deltas(outer=nesterov(0.7, 0.9)),
        [FakeBucket(torch.zeros(3)) for _ in range(2)],
        [0.5, 0.5],
        4,
        move,
    ):
        param.grad = 1.5 * move
        theirs.step()
        assert torch.allclose(ours, param.detach(), atol=1e-5)


def test_alpha_keeps_a_share_of_a_ranks_own_parameters() -> None:
    buckets = [FakeBucket(torch.zeros(2)) for _ in range(2)]
    anchors = exchange(deltas(outer=sgd(1.0), alpha=0.25), buckets, [0.5, 0.5], 1, torch.ones(2))
    assert anchors[0].tolist() == [-1.5] * 2
    assert [bucket.flat[0].item() for bucket in buckets] == [
        0.25 * -1 + 0.75 * -1.5,
        0.25 * -2 + 0.75 * -1.5,
    ]


def test_its_state_is_replaced_and_equal_on_all_ranks() -> None:
    bucket = FakeBucket(torch.zeros(2))
    state = deltas().init(bucket)
    before = state["anchor"].value
    deltas().write(bucket, torch.ones(2), state)
    assert before.tolist() == [0.0, 0.0]
    assert {leaf.kind for _, leaf in state.walk()} == {"replicated"}
    assert [path for path, _ in state.walk()] == ["anchor", "outer/velocity"]


@pytest.mark.parametrize(
    "when",
    [every(4), delayed(3, every(4)), delayed(2, staggered(4, every(8))), warmup(2, every(4))],
    ids=repr,
)
def test_a_delta_that_lands_before_the_next_is_taken_is_fine(when: Schedule) -> None:
    assert Strategy(when=when, on=deltas()).when == when


@pytest.mark.parametrize(
    "when", [delayed(4, every(4)), delayed(1, every(1)), delayed(1, warmup(2, every(8)))], ids=repr
)
def test_a_delta_that_lands_later_is_refused(when: Schedule) -> None:
    with pytest.raises(StrategyError, match="local progress counts twice"):
        Strategy(when=when, on=deltas())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(StrategyError, match=r"lies in \[0, 1\]"):
        deltas(alpha=alpha)


def test_alpha_one_never_looks_at_the_anchor() -> None:
    bucket = FakeBucket(torch.zeros(2))
    target = deltas(outer=sgd(1.0), alpha=1.0)
    state = target.init(bucket)
    bucket.flat = torch.tensor([1.0, 2.0])
    target.write(bucket, torch.tensor([5.0, 5.0]), state)
    assert bucket.flat.tolist() == [1.0, 2.0]
    assert target.common(bucket, state).tolist() == [-5.0, -5.0]


# -- eager
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outer", [sgd(0.7), nesterov(0.7, 0.9), optim("AdamW", "lr=0.1")], ids=repr
)
def test_eager_goes_on_from_its_own_step_and_puts_it_right(outer: Outer) -> None:
    """Launch, one step meanwhile, landing; twice. What stays is the common anchor plus the step
    meanwhile."""
    bucket, plain = FakeBucket(torch.zeros(3)), FakeBucket(torch.zeros(3))
    target = deltas(outer=outer, eager=True)
    state, trial = target.init(bucket), deltas(outer=outer).init(plain)
    meanwhile = torch.tensor([0.01, 0.02, -0.03])
    for step in range(2):
        own, other = torch.tensor([1.0, -2.0, 3.0]) + step, torch.tensor([2.0, 2.0, 2.0])
        bucket.flat = bucket.flat - own
        said = target.read(bucket, state, weight=0.5)
        alone = FakeBucket(torch.zeros(3))
        alone_state = twin(trial)
        delta = target.common(bucket, state) - (
            target.common(bucket, state) - own - (meanwhile if step else 0)
        )
        deltas(outer=outer).write(alone, delta, alone_state)
        assert torch.allclose(bucket.flat, alone.flat, atol=1e-6), (
            "it goes on from where its own delta would have led"
        )
        bucket.flat = bucket.flat - meanwhile
        total = said + 0.5 * other
        target.write(bucket, total, state)
        deltas(outer=outer).write(plain, total, trial)
        assert torch.equal(
            target.common(bucket, state), deltas(outer=outer).common(plain, trial)
        ), "all ranks keep one anchor"
        assert torch.allclose(bucket.flat, target.common(bucket, state) - meanwhile, atol=1e-6)
        assert state["ahead"].value.numel() == 1, "nothing is kept while nothing is in the air"


def test_eager_and_alpha_are_two_answers_to_one_question() -> None:
    with pytest.raises(StrategyError, match="take alpha=0"):
        deltas(alpha=0.5, eager=True)


# -- how it is kept
# --------------------------------------------------------------------------------------------------


def test_bf16_halves_the_memory_of_anchor_and_outer_state() -> None:
    bucket = FakeBucket(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    target = deltas(outer=nesterov(0.7, 0.9), store="bf16")
    state = target.init(bucket)
    for step in range(3):
        target.write(bucket, torch.full((1000,), 0.01 * step), state)
        assert {leaf.value.dtype for _, leaf in state.walk()} == {torch.bfloat16}
        assert torch.equal(bucket.flat, target.common(bucket, state)), (
            "a rank starts from what all ranks keep"
        )


def test_bf16_anchors_move_by_less_than_their_step_in_the_mean() -> None:
    """Moves of a tenth of a bfloat16 step: to the nearest, the anchor would never leave 1."""
    bucket = FakeBucket(torch.ones(20_000))
    target = deltas(outer=sgd(1.0), store="bf16")
    state, move = target.init(bucket), 2**-7 / 10
    for step in range(20):
        target.write(bucket, torch.full((20_000,), -move) + 1e-9 * step, state)
    gone = float(bucket.flat.mean()) - 1
    assert gone == pytest.approx(20 * move, rel=0.05)
    assert bucket.flat.unique().numel() > 2


def test_bf16_rounds_alike_on_every_rank_and_anew_each_time() -> None:
    buckets = [FakeBucket(torch.ones(500)) for _ in range(2)]
    target = deltas(outer=sgd(1.0), store="bf16")
    states = [target.init(bucket) for bucket in buckets]
    for bucket, state in zip(buckets, states, strict=True):
        target.write(bucket, torch.full((500,), 1e-3), state)
    assert torch.equal(buckets[0].flat, buckets[1].flat)
    first = buckets[0].flat.clone()
    target.write(buckets[0], torch.full((500,), 2e-3), states[0])
    assert not torch.equal((first == 1), (buckets[0].flat == first))


def test_float64_is_never_narrowed_and_the_host_may_keep_it() -> None:
    bucket = FakeBucket(torch.zeros(4, dtype=torch.float64))
    state = deltas(store="bf16", device="cpu").init(bucket)
    assert {(leaf.value.dtype, leaf.value.device.type) for _, leaf in state.walk()} == {
        (torch.float64, "cpu")
    }


@pytest.mark.parametrize(
    ("setting", "told"), [({"store": "fp8"}, "choose 'bf16'"), ({"device": "disk"}, "choose 'cpu'")]
)
def test_another_word_is_refused(setting: dict[str, str], told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        deltas(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [deltas, parameters])
def test_averages_that_bf16_would_halt_are_refused(target: type[deltas] | type[parameters]) -> None:
    with pytest.raises(StrategyError, match="would stand still"):
        target(outer=optim("AdamW"), store="bf16")


def test_what_is_not_said_leaves_no_trace_and_all_survives_toml() -> None:
    assert repr(deltas(sgd(1.0))) == "deltas(outer=sgd(lr=1.0, momentum=0.0), alpha=0.0)"
    full = Strategy(every(4), on=deltas(nesterov(0.7, 0.8), eager=True, store="bf16", device="cpu"))
    assert Strategy.from_toml(full.to_toml()) == full
    full = Strategy(every(4), on=deltas(optim("AdamW", "lr=0.1"), eager=True, device="cpu"))
    assert Strategy.from_toml(full.to_toml()) == full
