"""Name the metrics that frameworks log, one name in all of them."""

from __future__ import annotations

from thinwire.engine.syncer import Syncer


def metrics_of(sync: Syncer) -> dict[str, float]:
    """Return what a logger shows of a syncer: totals since it was attached, or went on from a
    checkpoint.

    Returns:
        thinwire/sent_megabytes: MB (1e6 bytes) that this rank has sent.
        thinwire/exposed_seconds: time that the loop has waited for the wire.
        thinwire/times_fewer_bytes: than dense fp32 would send; left out where nothing is sent.
        thinwire/skipped_steps: steps left out for values that are not finite.

    Example:
        >>> import torch, thinwire
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with thinwire.attach(model, optimizer) as sync:
        ...     sorted(metrics_of(sync))
        ['thinwire/exposed_seconds', 'thinwire/sent_megabytes', 'thinwire/skipped_steps']
    """
    report = sync.report()
    metrics = {
        "thinwire/sent_megabytes": report.sent_bytes / 1e6,
        "thinwire/exposed_seconds": report.exposed_s,
        "thinwire/skipped_steps": float(report.skipped),
    }
    if report.sent_bytes:
        metrics["thinwire/times_fewer_bytes"] = report.ratio
    return metrics
