"""Metrics have one name in all loggers, and the values of the report."""

from __future__ import annotations

from tests.ddp import train, wrapped
from tests.ranks import run_ranks
from thinwire import ddp_hook, recipes
from thinwire.adapters.metrics import metrics_of


def _metrics(rank: int) -> tuple[dict[str, float], dict[str, float]]:
    ddp, optimizer = wrapped()
    with ddp_hook(ddp, recipes.powersgd(rank=1), optimizer=optimizer) as sync:
        train(ddp, optimizer, rank, range(3))
        report = sync.report()
        return metrics_of(sync), {
            "thinwire/sent_megabytes": report.sent_bytes / 1e6,
            "thinwire/exposed_seconds": report.exposed_s,
            "thinwire/skipped_steps": 0.0,
            "thinwire/times_fewer_bytes": report.ratio,
        }


def _resumed(rank: int) -> list[dict[str, float]]:
    """Of a run of six steps, then of one that goes on from it for two."""
    told, state = [], None
    for steps in (range(6), range(6, 8)):
        ddp, optimizer = wrapped()
        with ddp_hook(ddp, recipes.powersgd(rank=1), optimizer=optimizer) as sync:
            if state is not None:
                sync.load_state_dict(state)
            train(ddp, optimizer, rank, steps)
            state = sync.state_dict()
            told.append(metrics_of(sync))
    return told


def test_after_a_checkpoint_they_are_of_the_steps_since() -> None:
    for whole, rest in run_ranks(2, _resumed):
        fewer = "thinwire/times_fewer_bytes"
        assert rest["thinwire/sent_megabytes"] < whole["thinwire/sent_megabytes"] / 2
        assert abs(rest[fewer] / whole[fewer] - 1) < 0.01


def test_metrics_are_those_of_the_report() -> None:
    for metrics, reported in run_ranks(2, _metrics):
        assert metrics == reported
        assert metrics["thinwire/sent_megabytes"] > 0
