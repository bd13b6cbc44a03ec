"""What a study asks of its contestants."""

from dataclasses import replace

from thinwire.bench.contestants import Contestant
from thinwire.bench.studies import QUICK_STUDY, STUDY


def test_two_rounds_of_who_communicates_seldom_are_not_timed() -> None:
    often, seldom = Contestant("a", "ddp", {}), Contestant("b", "ddp", {}, period=30)
    assert STUDY.warm(often) == STUDY.timing["warm"]
    assert STUDY.warm(seldom) == 60


def test_a_contestants_own_fields_come_before_the_studys() -> None:
    own = Contestant("a", "ddp", {"hook": "none"}, job={"lr": 7.0, "batch": 3})
    job = STUDY.job(own, 2, STUDY.curve, "train.npy", "held.npy")
    assert (job.lr, job.batch, job.seed, job.settings) == (7.0, 3, 2, {"hook": "none"})


def test_networks_have_a_host_for_each_rank() -> None:
    for study in (STUDY, QUICK_STUDY, replace(STUDY)):
        networks = [*study.networks, study.proof[1]]
        assert {len(each.network.hosts) for each in networks} == {study.world}
        assert len({each.name for each in study.networks}) == len(study.networks)
