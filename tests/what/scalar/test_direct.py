import pytest
import torch

from thinwire.core import Coder, Spec, State
from thinwire.errors import PayloadError
from thinwire.testing import contexts
from thinwire.what import natural, nf4, ternary

SPEC, SEAT = Spec((), 0, 100, torch.float32), contexts()[1]


@pytest.mark.parametrize(
    "codec", [natural("nearest"), nf4(), ternary(rounding="nearest")], ids=repr
)
def test_one_payload_is_returned_written_or_added(codec: Coder) -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    payload = codec.encode(x, SPEC, State(), SEAT)
    opened = codec.decode(payload, SPEC, State(), SEAT, 1)
    filled, total = torch.full((100,), 7.0), torch.ones(100)
    codec.fill(filled, payload, SPEC, State(), SEAT, 1)
    codec.accumulate(total, payload, SPEC, State(), SEAT, 1)
    assert torch.equal(filled, opened)
    assert torch.equal(total, opened + 1)


@pytest.mark.parametrize(
    "codec", [natural("nearest"), nf4(), ternary(rounding="nearest")], ids=repr
)
def test_a_payload_of_another_size_writes_nothing(codec: Coder) -> None:
    short = codec.encode(torch.ones(100), SPEC, State(), SEAT)[:-1]
    out = torch.full((100,), 7.0)
    with pytest.raises(PayloadError):
        codec.fill(out, short, SPEC, State(), SEAT, 1)
    with pytest.raises(PayloadError):
        codec.accumulate(out, short, SPEC, State(), SEAT, 1)
    assert bool((out == 7.0).all())
