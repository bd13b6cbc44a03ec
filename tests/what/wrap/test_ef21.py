import pytest
import torch
from torch import Tensor

from thinwire.core import Codec, Outcome, Packet, Part, Spec, State
from thinwire.errors import StrategyError
from thinwire.how import direct, gather, native, ring, server, two_shot
from thinwire.strategy import Strategy
from thinwire.testing import contexts
from thinwire.what import by_role, cast, dgc, ef21, feedback, identity, lowrank, topk, uniform

SPEC = Spec((Part("w", (10, 6), 0, "matrix"),), 0, 60, torch.float32)
RANKS = (1, 2, 5)


def fly(
    codec: Codec, xs: dict[int, Tensor], states: dict[int, State], step: int = 0
) -> dict[int, Outcome]:
    """What comes of one flight of one packet, of all ranks."""
    return told(codec, xs, states, step)[1]


def told(
    codec: Codec, xs: dict[int, Tensor], states: dict[int, State], step: int
) -> tuple[dict[int, Packet], dict[int, Outcome]]:
    """What each rank says in a flight of one packet, and what comes of it."""
    at = contexts(step, group=tuple(xs))
    flows = {rank: codec.rounds(x, SPEC, states[rank], at[rank]) for rank, x in xs.items()}
    packets: dict[int, Packet] = {rank: next(flow) for rank, flow in flows.items()}
    total = torch.stack(
        [packet.open(packet.payload.clone(), rank) for rank, packet in packets.items()]
    ).sum(0)
    outcomes = {}
    for rank, flow in flows.items():
        with pytest.raises(StopIteration) as end:
            flow.send(total)
        outcomes[rank] = end.value.value
    return packets, outcomes


def begin(codec: Codec) -> tuple[dict[int, Tensor], dict[int, State]]:
    xs = {rank: torch.randn(60, generator=torch.Generator().manual_seed(rank)) for rank in RANKS}
    return xs, {rank: codec.init(SPEC, ctx) for rank, ctx in contexts().items()}


@pytest.mark.parametrize(("inner", "kept"), [(topk(6), 0.1), (topk(15), 0.25)], ids=repr)
def test_of_values_that_stand_still_the_error_shrinks_as_stated_and_is_there(
    inner: Codec, kept: float
) -> None:
    codec = ef21(inner)
    xs, states = begin(codec)
    for flight in range(1, 4):
        outcomes = fly(codec, xs, states, flight)
        for rank, x in xs.items():
            assert outcomes[rank].sent
            off = (outcomes[rank].sent() - x).square().sum() / x.square().sum()  # type: ignore[misc]
            assert 0 < off <= (1 - kept) ** flight
    for flight in range(4, 12):
        outcomes = fly(codec, xs, states, flight)
    assert torch.allclose(outcomes[1].total, sum(xs.values()), atol=1e-5)  # type: ignore[arg-type]


def test_the_total_is_the_sum_of_what_is_known_of_all() -> None:
    codec = ef21(uniform(2))
    xs, states = begin(codec)
    for step in range(5):
        outcomes = fly(codec, {rank: x * step for rank, x in xs.items()}, states, step)
        known = torch.stack([state["known"].value for state in states.values()]).sum(0)
        assert all(
            torch.allclose(state["total"].value, known, atol=1e-5) for state in states.values()
        )
        assert all(
            torch.equal(outcome.total, states[1]["total"].value) for outcome in outcomes.values()
        )


def test_a_flight_that_is_no_number_leaves_every_rank_as_it_was() -> None:
    codec = ef21(topk(6))
    xs, states = begin(codec)
    fly(codec, xs, states, 0)
    held = {rank: (state["known"].value, state["total"].value) for rank, state in states.items()}
    bad = {**xs, 2: xs[2].clone().fill_(float("nan"))}
    assert fly(codec, bad, states, 1)[5].total.isnan().any()
    for rank, state in states.items():
        assert torch.equal(state["known"].value, held[rank][0])
        assert torch.equal(state["total"].value, held[rank][1])


def test_its_states_survive_another_world() -> None:
    leaves = ef21(topk(1)).init(SPEC, contexts()[2]).leaves
    assert {name: (leaf.kind, leaf.spec, leaf.group) for name, leaf in leaves.items()} == {
        "known": ("summed", SPEC, (1, 2, 5)),
        "total": ("replicated", SPEC, ()),
    }


def test_no_owner_can_open_its_packets() -> None:
    assert "sends in several rounds or parts" in str(
        two_shot(back=ef21(uniform(4))).refuses(uniform(4))
    )


def test_no_route_may_encode_its_sums_again() -> None:
    """H adds up the sums of changes: an error in one of them would stay there, as nobody's h knows
    of it."""
    for how in (two_shot(), server((0,)), ring()):
        with pytest.raises(StrategyError, match=r"Use"):
            Strategy(what=ef21(uniform(4)), how=how)
    for what in (ef21(uniform(4)), ef21(lowrank(2))):
        assert Strategy(what=what, how=gather())
    assert Strategy(what=ef21(lowrank(2)))


@pytest.mark.parametrize(
    "inner",
    [feedback(topk(1)), by_role(matrix=feedback(cast())), dgc(topk(1)), ef21(topk(1))],
    ids=repr,
)
def test_one_residual_is_enough(inner: Codec) -> None:
    with pytest.raises(StrategyError, match="would count a loss twice"):
        ef21(inner)
    with pytest.raises(StrategyError, match="would count a loss twice"):
        feedback(ef21(topk(1)))


def test_what_loses_nothing_needs_none() -> None:
    with pytest.raises(StrategyError, match="it loses nothing"):
        ef21(identity())


@pytest.mark.parametrize(
    "codec", [ef21(cast()), ef21(by_role(matrix=lowrank(2), vector=cast("fp16")))], ids=repr
)
def test_catching_up_is_not_added_in_sixteen_bits(codec: Codec) -> None:
    """H would keep what each sum loses, for good."""
    for route in (native(), two_shot(), direct()):
        assert route.refuses(codec)
    assert gather().refuses(ef21(cast())) is None
    assert native().refuses(ef21(lowrank(2))) is None
