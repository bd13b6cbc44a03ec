"""What a codec offers and promises."""

from dataclasses import replace

import pytest
import torch

from tests.cases import CODECS
from thinwire.core import (
    Codec,
    Coder,
    Outcome,
    RankContext,
    Rounds,
    Spec,
    check_nbytes,
    needs_input_later,
)
from thinwire.core.component import Component
from thinwire.errors import PayloadError
from thinwire.kernels import reference
from thinwire.testing import contexts, specs
from thinwire.what import cast, clip, ef21, feedback, identity, lowrank, topk, uniform

ALL = [codec for codecs in CODECS.values() for codec in codecs]


def test_a_coder_has_at_most_14_public_members() -> None:
    everyones = {*dir(Component), "examples"}
    public = [name for name in dir(Coder) if not name.startswith("_") and name not in everyones]
    assert len(public) <= 14, public


@pytest.mark.parametrize("codec", ALL, ids=repr)
def test_every_example_states_a_finite_error_bound_that_is_not_negative(codec: Codec) -> None:
    spec = specs()["many parts"]
    ctx = contexts()[1]
    x = torch.linspace(-1, 1, spec.numel)
    x[::2] *= 1e-3  # what changes no view of a base of ones
    bound = codec.error_bound(x, spec, ctx)
    assert (bound.shape, bound.dtype) == ((spec.numel,), torch.float64)
    assert bound.isfinite().all()
    assert (bound >= 0).all()
    assert codec.traits.lossy is bool(bound.any())


def test_traits_are_made_once_and_are_no_part_of_equality() -> None:
    codec, other = uniform(4), uniform(4)
    assert codec.traits is codec.traits
    assert (codec, hash(codec), repr(codec)) == (other, hash(other), repr(other))


@pytest.mark.parametrize(
    ("codec", "needs"),
    [
        (uniform(4), False),
        (lowrank(2), True),
        (feedback(topk(3)), False),
        (ef21(topk(3)), False),
        (clip(identity(), norm=1.0), True),
    ],
    ids=repr,
)
def test_who_reads_the_input_after_the_answer(codec: Codec, needs: bool) -> None:
    assert needs_input_later(codec) is needs


def test_row_wise_is_said_of_rows_and_of_values_alone() -> None:
    wise = [identity(), cast(), uniform(4, "row"), uniform(4, step=0.1)]
    assert all(codec.traits.row_wise for codec in wise)
    assert not any(codec.traits.row_wise for codec in (uniform(4), topk(0.1), lowrank(2)))


def test_a_payload_of_another_length_is_refused() -> None:
    coder, spec = cast(), Spec((), 0, 3, torch.float32)
    check_nbytes(coder, torch.zeros(6, dtype=torch.uint8), coder.nbytes(spec))
    with pytest.raises(PayloadError, match="5 bytes where 6 were due"):
        check_nbytes(coder, torch.zeros(5, dtype=torch.uint8), coder.nbytes(spec))


def test_a_data_sized_codec_must_state_its_most() -> None:
    class _loose(uniform):
        def nbytes(self, spec: Spec) -> None:  # type: ignore[override]
            return None

    with pytest.raises(TypeError, match="must give max_nbytes"):
        _loose().max_nbytes(specs()["many parts"])


@pytest.mark.parametrize(
    "codec", [codec for codecs in CODECS.values() for codec in codecs], ids=repr
)
def test_codecs_are_values(codec: Codec) -> None:
    assert hash(codec) == hash(replace(codec))  # type: ignore[type-var]
    assert isinstance(codec.traits.lossy, bool)


def test_what_a_coder_sent_outlives_the_sum_that_a_route_writes_into_its_payload() -> None:
    """Where payloads may be added, they are added in place."""
    spec = specs()["no parts"]
    codec, ctx = CODECS["cast"][0], RankContext(0, (0, 1), 0, 0)

    def heard(x: torch.Tensor) -> Rounds:
        return codec.rounds(x, spec, codec.init(spec, ctx), ctx)

    flow = heard(torch.ones(100))
    packet = next(flow)
    reference.from_bytes(packet.payload, torch.bfloat16).fill_(7.0)
    with pytest.raises(StopIteration) as end:
        flow.send(torch.full((100,), 7.0))
    outcome: Outcome = end.value.value
    assert outcome.sent is not None
    assert outcome.sent().tolist() == [1.0] * 100
