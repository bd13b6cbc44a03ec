"""The proofs, with ranks as threads of this process."""

import pytest
import torch

from tests.proofs import PROOFS
from tests.threads import on_threads


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("name", PROOFS)
def test_proof(name: str, lanes: int) -> None:
    proof = PROOFS[name]
    records = on_threads(proof.world, proof.fly, lanes)
    for record in records.values():
        if isinstance(record, Exception):
            raise record
    proof.judge(proof, [records[rank] for rank in range(proof.world)])


def test_lanes_change_nothing() -> None:
    proof = PROOFS["two-sided feedback"]
    one, two = (on_threads(proof.world, proof.fly, lanes)[0].totals for lanes in (1, 2))
    assert all(torch.equal(total, two[at]) for at, total in one.items())
