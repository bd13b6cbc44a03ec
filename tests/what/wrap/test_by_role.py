import pytest
import torch

from thinwire.core import Codec, Packet, Part, Spec
from thinwire.errors import PayloadError
from thinwire.testing import contexts, specs
from thinwire.what import by_role, cast, identity, lowrank, threshold, topk, uniform

SEAT, MANY = contexts()[1], specs()["many parts"]


def first_packet(codec: Codec, x: torch.Tensor, spec: Spec = MANY) -> Packet:
    return next(codec.rounds(x, spec, codec.init(spec, SEAT), SEAT))


def test_each_role_is_said_as_if_it_were_alone() -> None:
    x = torch.randn(MANY.numel)
    codec = by_role(matrix=topk(7), embedding=uniform(4, block=8), vector=cast())
    flow = codec.rounds(x, MANY, codec.init(MANY, SEAT), SEAT)
    packet = next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(packet.open(packet.payload, 1))
    total = end.value.value.total
    matrix, embedding, vector = (
        torch.tensor([i for p in MANY.parts if p.role == role for i in range(p.begin, p.end)])
        for role in ("matrix", "embedding", "vector")
    )
    assert total[matrix].nonzero().view(-1).tolist() == sorted(
        x[matrix].abs().topk(7).indices.tolist()
    )
    assert (
        0 < (total[embedding] - x[embedding]).abs().max() <= x[embedding].abs().max() / 14 * 1.0001
    )
    assert torch.equal(total[vector], x[vector].bfloat16().float())


def test_a_bucket_of_one_role_travels_as_its_codec_alone() -> None:
    spec = Spec((Part("w", (8, 8), 0, "matrix"),), 0, 64, torch.float32)
    assert first_packet(by_role(matrix=uniform(4)), torch.randn(64), spec).coder == uniform(4)


def test_numbers_stay_aligned_and_summable_whatever_their_widths() -> None:
    packet = first_packet(
        by_role(matrix=cast(), embedding=identity(), vector=cast("fp16")), torch.randn(MANY.numel)
    )
    assert [dtype for _, dtype in packet.sums] == [torch.float32, torch.bfloat16, torch.float16]
    assert sum(nbytes for nbytes, _ in packet.sums) == packet.payload.numel()


@pytest.mark.parametrize(
    ("codec", "grain"),
    [(by_role(), 1), (by_role(matrix=uniform(4)), 1), (by_role(matrix=lowrank(2)), "part")],
)
def test_grain(codec: by_role, grain: object) -> None:
    assert codec.traits.grain == grain


def test_lengths_go_before_what_the_data_sizes_and_are_checked() -> None:
    packet = first_packet(
        by_role(matrix=threshold(1.0), vector=threshold(1.0)), torch.randn(MANY.numel)
    )
    payload = packet.payload.clone()
    payload[:8] = torch.tensor([2**50]).view(torch.uint8)
    with pytest.raises(PayloadError, match="cut or corrupted"):
        packet.open(payload, 1)
    with pytest.raises(PayloadError, match="too few for 2 lengths"):
        packet.open(packet.payload[:15].clone(), 1)
