"""Payloads whose size the receiver does not know are announced first, and not believed."""

import pytest
import torch

from thinwire.core import Part, Spec
from thinwire.core.codec import needs_input_later
from thinwire.drive.local import run
from thinwire.errors import PayloadError
from thinwire.how._rounds import Expected, joined, swap_runs, targets
from thinwire.what import feedback, identity, threshold, topk

SPEC = Spec((Part("w", (10,), 0, "vector"),), 0, 10, torch.float32)
CPU = torch.device("cpu")


def flight(rank: int, payload: torch.Tensor, expected: Expected):  # type: ignore[no-untyped-def]
    other = 1 - rank
    known = expected.nbytes is not None
    return (yield from swap_runs([(other, [payload], [known])], [(other, [expected])], CPU))


def test_sizes_that_differ_from_rank_to_rank_arrive_whole() -> None:
    coder = threshold(1.0)
    expected = Expected(None, coder.max_nbytes(SPEC), coder)
    sent = {rank: torch.arange(3 + 4 * rank, dtype=torch.uint8) for rank in (0, 1)}
    received = run({rank: flight(rank, sent[rank], expected) for rank in sent})
    assert all(torch.equal(received[rank][1 - rank][0], sent[1 - rank]) for rank in sent)


def test_more_than_a_codec_can_send_is_refused() -> None:
    expected = Expected(None, 4, identity())
    with pytest.raises(PayloadError, match=r"announces 5 bytes where identity\(\) sends at most 4"):
        run({rank: flight(rank, torch.zeros(5, dtype=torch.uint8), expected) for rank in (0, 1)})


def test_sums_are_written_where_the_input_is_no_longer_needed() -> None:
    x, spans = torch.ones(10), dict(enumerate(SPEC.cut(2, 1)))
    places = targets(identity(), x, spans)
    assert joined(x, [places[0], places[1]]).data_ptr() == x.data_ptr()
    assert joined(x, [places[0].clone(), places[1]]).data_ptr() != x.data_ptr()
    later = feedback(topk(0.5))
    assert bool(targets(later, x, spans)) is not needs_input_later(later)
