import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thinwire.core import Codec, Part, Spec, State
from thinwire.drive.local import run
from thinwire.errors import StrategyError
from thinwire.how import gather
from thinwire.testing import contexts
from thinwire.what import codebook, feedback, topk, uniform

SEAT = contexts()[1]
SPEC = Spec(
    (Part("w", (128, 64), 0, "matrix"), Part("b", (30,), 8192, "vector")), 0, 8222, torch.float32
)


def through(codec: codebook | uniform, x: Tensor) -> Tensor:
    spec = Spec((), 0, x.numel(), x.dtype)
    payload = codec.encode(x, spec, State(), SEAT)
    assert payload.numel() == codec.nbytes(spec)
    return codec.decode(payload, spec, State(), SEAT, 1)


def flights(codec: Codec, draw: Any, steps: int) -> tuple[list[float], dict[int, State]]:
    """The relative errors of several flights, fresh values each, and the states after them."""
    ranks = (0, 1, 2)
    states = {rank: codec.init(SPEC, ctx) for rank, ctx in contexts(group=ranks).items()}
    errors = []
    for step in range(steps):
        at, xs = contexts(step, group=ranks), {rank: draw(step, rank) for rank in ranks}
        carried = {
            rank: gather().carry(
                codec, xs[rank].clone(), SPEC, State(children={"codec": states[rank]}), at[rank]
            )
            for rank in ranks
        }
        exact = torch.stack(list(xs.values())).sum(0)
        errors.append(float((run(carried)[0].total - exact).norm() / exact.norm()))
    return errors, states


def related(step: int, rank: int) -> Tensor:
    """Vectors of 4 values of which 2 decide the others."""
    mix = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4111, generator=torch.Generator().manual_seed(1000 * step + rank))
    return torch.cat([(x[: 2 * 2048].view(-1, 2) @ mix).view(-1), x[-30:]])


@given(
    n=st.integers(0, 400),
    dim=st.integers(1, 9),
    bits=st.integers(2, 5),
    stages=st.integers(1, 3),
    blocks=st.integers(1, 9),
)
def test_bytes_are_numbers_and_one_scale_a_block(
    n: int, dim: int, bits: int, stages: int, blocks: int
) -> None:
    codec = codebook(dim, bits, stages, dim * blocks)
    numbers = math.ceil(math.ceil(n / dim) * stages * bits / 8)
    for dtype, wide in ((torch.float32, 4), (torch.float64, 8)):
        spec = Spec((Part("w", (n,), 0, "vector"),), 0, n, dtype)
        lessons = stages * min(16, 2**bits) * (dim + 1) if n >= 32 * 2**bits * dim else 0
        assert codec.nbytes(spec) == numbers + wide * (math.ceil(n / (dim * blocks)) + lessons)


@pytest.mark.parametrize(
    ("dim", "bits", "stages", "low", "high"),
    [(1, 2, 1, 0.33, 0.36), (2, 4, 1, 0.32, 0.345), (4, 8, 1, 0.31, 0.33), (2, 4, 2, 0.10, 0.13)],
)
def test_the_first_book_is_near_the_best_for_normal_values(
    dim: int, bits: int, stages: int, low: float, high: float
) -> None:
    x = torch.randn(65536, generator=torch.Generator().manual_seed(5))
    error = float((through(codebook(dim, bits, stages), x) - x).norm() / x.norm())
    assert (
        low < error < high
    )  # 2 bits a value: Lloyd and Max reach 0.343, nothing is below 0.25; two stages are 4 bits
    assert float((through(uniform(2, grid="rise"), x) - x).norm() / x.norm()) > 0.5


def test_books_follow_what_values_have_in_common() -> None:
    errors, _ = flights(codebook(4, 4, refresh=8), related, 40)
    assert errors[0] > 0.55
    assert 0.1 < errors[-1] < 0.6 * errors[0]
    fixed, _ = flights(codebook(4, 4, refresh=0), related, 3)
    assert fixed[-1] > 0.95 * errors[0]


def test_books_are_the_same_on_all_ranks_and_belong_to_large_parameters() -> None:
    _, states = flights(codebook(4, 4, stages=2, refresh=8), related, 5)
    for name, shape in (("book/w", (2, 16, 4)), ("used/w", (2, 16)), ("turn/w", ())):
        values = [state[name].value for state in states.values()]
        assert values[0].shape == shape
        assert all(torch.equal(value, values[0]) for value in values)
    assert set(states[0].leaves) == {"book/w", "used/w", "turn/w"}
    assert int(states[0]["turn/w"].value) == 5
    assert (
        codebook(8, 8).init(SPEC, SEAT).leaves == {}
    )  # 8192 values are too few for 256 entries of 8


def test_entries_are_learned_by_turns() -> None:
    codec = codebook(4, 4, refresh=4)
    first = codec.init(SPEC, SEAT)["book/w"].value
    moved = (flights(codec, related, 1)[1][0]["book/w"].value != first).any(2)[0]
    assert moved[:4].any()
    assert not moved[4:].any()
    assert (flights(codec, related, 4)[1][0]["book/w"].value != first).any(2).sum() > 8


def test_with_feedback_what_was_said_catches_up() -> None:
    x = related(0, 0)
    totals = []
    codec = feedback(codebook(4, 4, refresh=8))
    states = {0: codec.init(SPEC, SEAT)}
    for step in range(60):
        at = contexts(step, group=(0,))[0]
        totals.append(
            run(
                {
                    0: gather().carry(
                        codec, x.clone(), SPEC, State(children={"codec": states[0]}), at
                    )
                }
            )[0].total
        )
    assert 0 < (torch.stack(totals).mean(0) - x).norm() / x.norm() < 0.05


def test_a_bad_value_spoils_its_block_and_no_other() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(24)
        x[10] = bad
        assert through(codebook(4, 4, block=8), x).isnan().tolist() == [
            8 <= i < 16 for i in range(24)
        ]


def test_a_fixed_book_speaks_once_and_may_say_a_core() -> None:
    assert codebook(4, 4, refresh=0).single_packet_coder is not None
    assert codebook(4, 4).single_packet_coder is None
    spec = Spec((), 0, 4096, torch.float32)
    codec = topk(64, per=256) >> codebook(4, 8, block=64)
    x = torch.randn(4096)
    state = codec.init(spec, SEAT)
    assert (
        0.5
        < (codec.decode(codec.encode(x, spec, state, SEAT), spec, state, SEAT, 1) - x).norm()
        / x.norm()
        < 0.8
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 0}, "a vector has 1 to 32 values"),
        ({"bits": 1}, "choose 2 to 10"),
        ({"bits": 11}, "choose 2 to 10"),
        ({"stages": 0}, "choose 1 to 8"),
        ({"block": 12}, "a block is a multiple of dim=8"),
        ({"refresh": -1}, "a count is 0 or more"),
        ({"decay": 1.0}, "lies in [0, 1)"),
    ],
)
def test_a_wrong_argument_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StrategyError) as caught:
        codebook(**settings)
    assert told in str(caught.value)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(StrategyError) as caught:
        codebook(dim=0, bits=1, stages=0, block=0, refresh=-1, decay=2.0)
    assert len(caught.value.reasons) == 6
