"""Reduce the way between two hosts to the alpha-beta model, which closed cost formulas use.

Sources: R. W. Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2",
Parallel Computing 20 (1994); the time a message holds its sender is the overhead o of LogP
(Culler et al., PPoPP 1993).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transport:
    """Describe how a driver's transport uses a link, whatever the link is.

    Args:
        window_bytes: what its own all-reduce keeps in flight of a message; `None` for no such limit
            (gloo: 2 MiB).
        waits: a message leaves once its receiver's word that it is ready has come, so an exchange
            takes a round trip, 2 α (gloo). NCCL's buffers, and TCP by itself, do not wait.

    Raises:
        ValueError: a window of less than a byte.
    """

    window_bytes: int | None = None
    waits: bool = False

    def __post_init__(self) -> None:
        if self.window_bytes is not None and self.window_bytes < 1:
            raise ValueError(
                f"Transport(window_bytes={self.window_bytes}): a window is at least 1 byte; None "
                "for no limit"
            )


@dataclass(frozen=True, slots=True)
class Link:
    """Hold the alpha-beta view of the way from one rank to another; `Network.between` makes it.

    A rank sends one message after another. Each holds its sender for `message_s + nbytes /
    rate_bytes_per_s` and arrives `latency_s` (α) later; the rank receives at the same time.

    Args:
        latency_s: α, seconds one way.
        rate_bytes_per_s: 1 / β; infinite where nothing limits it.
        message_s: seconds that each message holds its sender, whatever its size.
        window_bytes: see `Transport`.
        inside: the way between ranks of one node, where that is another; for routes that know
            nodes.
        waits: see `Transport`.

    Raises:
        ValueError: a time below 0, or a rate or window that is not positive.

    Example:
        >>> round(Link(latency_s=0.025, rate_bytes_per_s=125e6).seconds(125_000), 6)
        0.026
    """

    latency_s: float
    rate_bytes_per_s: float
    message_s: float = 0.0
    window_bytes: int | None = None
    inside: Link | None = None
    waits: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value}"
            for name, value in (("latency_s", self.latency_s), ("message_s", self.message_s))
            if not value >= 0
        ]
        if not self.rate_bytes_per_s > 0:
            wrong.append(f"rate_bytes_per_s={self.rate_bytes_per_s}")
        if self.window_bytes is not None and self.window_bytes < 1:
            wrong.append(f"window_bytes={self.window_bytes}")
        if wrong:
            raise ValueError(
                f"Link({', '.join(wrong)}): times are at least 0 s, rates and windows positive"
            )

    @property
    def delay_s(self) -> float:
        """Return the seconds that an exchange takes beside sending."""
        return self.latency_s * (1 + self.waits)

    def windowed(self, nbytes: float) -> float:
        """Return the bytes a second that one message of the transport's own all-reduce gets.

        After each window but the last it waits for a round trip.

        Example:
            >>> long = Link(latency_s=0.025, rate_bytes_per_s=125e6, window_bytes=2 << 20)
            >>> [round(long.windowed(nbytes) / 1e6) for nbytes in (2 << 20, 4 << 20, 1 << 30)]
            [125, 63, 42]
        """
        if self.window_bytes is None or nbytes <= self.window_bytes:
            return self.rate_bytes_per_s
        idle = max(2 * self.latency_s - self.window_bytes / self.rate_bytes_per_s, 0.0)
        seconds = nbytes / self.rate_bytes_per_s + (nbytes / self.window_bytes - 1) * idle
        return nbytes / seconds if seconds else self.rate_bytes_per_s

    def seconds(self, *sizes: float) -> float:
        """Return the seconds from the first byte sent to the last one received.

        Args:
            sizes: bytes of messages that are sent one behind the other; one of size 0 is not sent.
        """
        sent = [size for size in sizes if size]
        if not sent:
            return 0.0
        return self.delay_s + sum(self.message_s + size / self.rate_bytes_per_s for size in sent)
