"""Count what a run has cost: bytes, seconds and tokens, over all processes that have continued
it."""

from __future__ import annotations

from typing import Any

from thinwire.engine import Report, Syncer
from thinwire.train.result import Progress


class Account:
    """The costs of one rank.

    Args:
        sync: whose meter counts the bytes.
        tokens: read by all ranks at each step.
    """

    def __init__(self, sync: Syncer, tokens: int) -> None:
        self._sync, self._tokens = sync, tokens
        self.seconds = self.input_s = 0.0
        self.tokens = 0
        self._before = (0, 0, 0.0)  # steps, tokens and seconds of the processes before this one

    def add(self, steps: int, seconds: float) -> None:
        self.tokens += steps * self._tokens
        self.seconds += seconds

    def report(self) -> Report:
        return self._sync.report()

    def progress(self, done: int, steps: int, loss: float) -> Progress:
        begun, tokens, seconds = self._before
        return Progress(
            done,
            steps,
            loss,
            self.seconds,
            self.tokens,
            self.report(),
            self.input_s,
            begun,
            tokens,
            seconds,
        )

    def state(self) -> dict[str, Any]:
        """Return the costs as a checkpoint saves them."""
        report = self.report()
        rows = [
            [row.flights, row.sent_bytes, row.encode_s, row.wire_s, row.exposed_s, row.carry_s]
            for row in report.rows
        ]
        return {
            "seconds": self.seconds,
            "input_s": self.input_s,
            "tokens": self.tokens,
            "around": dict(report.around),
            "rows": rows,
            "beside": [report.beside_s, report.transport_s],
        }

    def continue_from(self, saved: dict[str, Any], done: int) -> None:
        """Continue from a saved `state` after `done` batches; this process's start-up and votes are
        added to it."""
        # 1. This run's clock goes on; `_before` marks where this process began.
        self.seconds, self.input_s, self.tokens = (
            saved["seconds"],
            saved["input_s"],
            saved["tokens"],
        )
        self._before = (done, self.tokens, self.seconds)
        # 2. Bytes of start-up and votes, by cause. Older versions saved one number.
        meter = self._sync.meter
        before = (
            saved["around"]
            if isinstance(saved["around"], dict)
            else {"before it went on": saved["around"]}
        )
        for cause, nbytes in before.items():
            meter.around[cause] = meter.around.get(cause, 0.0) + nbytes
        # Earlier versions did not count these two.
        beside_s, transport_s = saved.get("beside", [0.0, 0.0])
        meter.beside_s += beside_s
        meter.transport_before_s -= transport_s
        # 3. Steps, and costs of each bucket; versions before `carry_s` saved five numbers a row.
        meter.steps = self._sync.step
        for row, (flights, sent, encode_s, wire_s, exposed_s, *carry_s) in zip(
            meter.rows, saved["rows"], strict=False
        ):
            row.flights += flights
            row.sent_bytes += sent
            row.encode_s += encode_s
            row.wire_s += wire_s
            row.exposed_s += exposed_s
            row.carry_s += sum(carry_s)
