"""Contributions of the store are read once, checked against the model and decoded, or passed over
with a warning."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from thinwire.core import Codec, Part, RankContext, Spec
from thinwire.quorum.contributions import ContributionReader
from thinwire.quorum.entries import Bounds, Contribution, pack
from thinwire.quorum.rendezvous_store import Gone, RendezvousStore
from thinwire.what import identity, topk, uniform

LIFE = "0123456789ab"
SPEC = Spec((Part("w", (6,), 0, "vector"),), 0, 6, torch.float32)
CUT = (SPEC.span(0, 4), SPEC.span(4, 6))  # the bucket's slices
X = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])


def ctx(rank: int, began: int) -> RankContext:
    return RankContext(rank, (0, 1), began, 0)


def rendezvous() -> RendezvousStore:
    store = RendezvousStore(dist.HashStore(), 2.0, Bounds(2, 10.0, 1 << 16, 1 << 16))
    store.start_run(0, f"0.{LIFE}.1")
    return store


def reader(store: RendezvousStore, codec: Codec = identity()) -> ContributionReader:
    bucket: Any = SimpleNamespace(slices=[SimpleNamespace(spec=spec) for spec in CUT])
    return ContributionReader(store, codec, [bucket], ctx)


def payloads(codec: Codec, rank: int = 1, x: Tensor = X) -> list[Tensor]:
    coder = codec.single_packet_coder
    assert coder is not None
    at = ctx(rank, 0)
    return [coder.encode(x[spec.begin : spec.end], spec, coder.init(spec, at), at) for spec in CUT]


def entered(
    store: RendezvousStore, tensors: list[Tensor], number: int = 1, **head: Any
) -> Contribution:
    """Enter rank 1's contribution to round 0."""
    blob = pack({"rank": 1, "began": 0, "weight": 2.0} | head, tensors)
    contribution = Contribution(f"1.{LIFE}.{number}", len(blob), 0)
    store.post(contribution.name, blob)
    store.enter(0, contribution)
    return contribution


@pytest.mark.parametrize("codec", [identity(), topk(6), uniform(8)], ids=repr)
def test_values_are_decoded_slice_by_slice(codec: Codec) -> None:
    store = rendezvous()
    contribution = entered(store, payloads(codec))
    mine = reader(store, codec)
    assert mine.usable(0) == [contribution]
    decoded = mine.values(contribution)
    assert decoded is not None
    weight, (values,) = decoded
    assert weight == 2.0
    assert torch.allclose(values, X, atol=0.05)
    assert torch.equal(values, X) or codec == uniform(8)


def test_bytes_are_read_once_and_until_they_are_forgotten() -> None:
    store = rendezvous()
    contribution = entered(store, payloads(identity()))
    mine = reader(store)
    assert mine.values(contribution) is not None
    store.delete(f"c/{contribution.name}/0")
    assert mine.values(contribution) is not None
    mine.forget([contribution])
    with pytest.raises(Gone):
        mine.values(contribution)


@pytest.mark.parametrize(
    ("head", "tensors", "why"),
    [
        ({"rank": 0}, None, r"entered as rank 1's of round 0, but its head has 0, 0"),
        ({"began": 3}, None, "its head has 1, 3"),
        ({"weight": 11.0}, None, r"weight 11\.0 is not from 0 to 10"),
        ({"weight": True}, None, "weight True is not from 0"),
        ({}, payloads(identity())[:1], "1 payloads are of another number of slices"),
        ({}, [X[:4], X[4:]], "its payloads are not bytes"),
        ({}, [each.view(1, -1) for each in payloads(identity())], "its payloads are not bytes"),
    ],
    ids=["rank", "round", "weight", "bool", "slices", "floats", "rows"],
)
def test_what_no_rank_can_have_made_does_not_count(
    head: dict[str, Any], tensors: list[Tensor] | None, why: str
) -> None:
    store = rendezvous()
    contribution = entered(store, payloads(identity()) if tensors is None else tensors, **head)
    mine = reader(store)
    with pytest.warns(
        UserWarning, match=f"rank 1's contribution of round 0 does not count: .*{why}"
    ):
        assert mine.usable(0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mine.usable(0) == []
        assert mine.values(contribution) is None


def test_what_does_not_decode_or_is_not_finite_is_none_for_every_rank() -> None:
    store = rendezvous()
    short = entered(store, [each[:-1] for each in payloads(identity())])
    endless = entered(store, payloads(identity(), x=X / 0), number=2)
    for _ in range(2):  # two ranks
        mine = reader(store)
        assert mine.usable(0) == [short, endless]
        with pytest.warns(UserWarning, match="does not count"):
            assert mine.values(short) is None
        with pytest.warns(UserWarning, match="its values are not finite"):
            assert mine.values(endless) is None


def test_bytes_that_are_not_there_yet_may_come() -> None:
    store, blob = rendezvous(), pack({"rank": 1, "began": 0, "weight": 1}, payloads(identity()))
    contribution = Contribution(f"1.{LIFE}.1", len(blob), 0)
    store.enter(0, contribution)
    mine = reader(store)
    with pytest.warns(UserWarning, match="its bytes are not there"):
        assert mine.usable(0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mine.usable(0) == [], "and it is warned of once"
    store.post(contribution.name, blob)
    assert mine.usable(0) == [contribution]
