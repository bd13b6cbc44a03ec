"""Rounds of a codec among ranks of one process: a sum is in the order of ranks."""

from __future__ import annotations

import torch

from thinwire.testing.cases import RANKS, contexts, inputs, specs
from thinwire.testing.rounds import add_up, run_rounds
from thinwire.what import identity, lowrank


def test_what_lands_is_the_sum_in_the_order_of_ranks() -> None:
    spec = specs()["many parts"]
    codec, xs = identity(), {rank: inputs(spec, rank)["normal"] for rank in RANKS}
    states = {rank: codec.init(spec, ctx) for rank, ctx in contexts().items()}
    expected = xs[1] + xs[2] + xs[5]
    record = run_rounds(codec, xs, spec, states, contexts(), "a sum")
    for outcome in record.outcomes.values():
        assert torch.equal(outcome.total, expected)


def test_each_round_is_recorded_with_a_packet_and_a_payload_of_each_rank() -> None:
    spec = specs()["many parts"]
    codec, xs = lowrank(2), {rank: inputs(spec, rank)["normal"] for rank in RANKS}
    states = {rank: codec.init(spec, ctx) for rank, ctx in contexts().items()}
    record = run_rounds(codec, xs, spec, states, contexts(), "two rounds")
    assert len(record.rounds) == len(record.payloads) > 1
    for packets, payloads in zip(record.rounds, record.payloads, strict=True):
        assert tuple(packets) == tuple(payloads) == RANKS
        totals = [add_up(packet, payloads) for packet in packets.values()]
        assert all(torch.equal(total, totals[0]) for total in totals)
