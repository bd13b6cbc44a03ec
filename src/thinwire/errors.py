"""What can go wrong, as types: each message says what was asked, why it cannot be, and what to
do."""

from __future__ import annotations

from collections.abc import Sequence


class ThinwireError(Exception):
    """The root of every error that Thinwire raises on purpose."""


class StrategyError(ThinwireError, ValueError):
    """A strategy, or a member of one, that cannot be honoured; all reasons at once.

    Example:
        >>> print(StrategyError(["bits=3 is not one of 2, 4, 8", "tau=-1 is below 0"]))
        bits=3 is not one of 2, 4, 8
        tau=-1 is below 0
    """

    def __init__(self, reasons: str | Sequence[str]) -> None:
        self.reasons: tuple[str, ...] = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        super().__init__("\n".join(self.reasons))


class AttachError(ThinwireError, ValueError):
    """A model, an optimiser or an option that cannot be attached."""


class CheckpointError(ThinwireError, ValueError):
    """A checkpoint that cannot be read, or is of another model, strategy, text or version."""


class ConfigError(ThinwireError, ValueError):
    """Settings of a run that cannot be, or an output folder or checkpoint that does not suit
    them."""


class DataError(ThinwireError, ValueError):
    """A text, a tokenizer or a cache of tokens that cannot be read, made or used."""


class ModelError(ThinwireError, ValueError):
    """A model that cannot be built or read, or that does not fit its tokenizer, its context or what
    is asked of it."""


class DisagreementError(ThinwireError, RuntimeError):
    """Ranks that should hold the same thing hold different things: strategies, models, or trained
    weights."""


class NotLandedError(ThinwireError, RuntimeError):
    """Something was asked for, or done, before its mean had landed: `optimizer.step()`, `check()`,
    a checkpoint, a gradient read."""


class PayloadError(ThinwireError, ValueError):
    """Bytes that do not decode: too short, too long, or contradicting themselves."""


class FlightError(ThinwireError, RuntimeError):
    """A flight did not reach its end; the text names step, bucket and the transport's error."""


class NonFiniteError(FlightError):
    """Gradients or parameters with values that are not finite: it names the rank, the step and the
    parameter."""


class RankLostError(FlightError):
    """One or more ranks died, stopped, raised an error of their own, left or were cut off; `ranks`
    names them.

    Args:
        ranks: the ranks that no longer answer; empty where all answer but the flight timed out.
        message: the whole sentence for the user.
    """

    def __init__(self, ranks: Sequence[int], message: str) -> None:
        self.ranks: tuple[int, ...] = tuple(ranks)
        super().__init__(message)


class LinkLostError(FlightError):
    """Two ranks live, and nothing passes between them, or one way; `ranks` are the two, the sender
    first where the way is known.

    Args:
        ranks: the two ends.
        one_way: whether it is known that only what the first sends is lost.
        message: the whole sentence for the user.
    """

    def __init__(self, ranks: Sequence[int], one_way: bool, message: str) -> None:
        self.ranks: tuple[int, ...] = tuple(ranks)
        self.one_way = one_way
        super().__init__(message)


class QuorumError(FlightError):
    """Fewer ranks than the quorum came to a round in time: it says who did, and what to do."""


class NetworkError(ThinwireError, ValueError):
    """A description of a network that cannot be read, or that contradicts itself; all reasons at
    once."""


class LabError(ThinwireError, RuntimeError):
    """Emulated hosts that cannot be made, or that stopped being what was asked: it says what is
    missing and what to do."""


class BenchError(ThinwireError, RuntimeError):
    """A contestant of a bench that cannot be installed or run: it says what was tried and what came
    of it."""
