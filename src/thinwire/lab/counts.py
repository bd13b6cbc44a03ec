"""Hold what the kernel counts on a link."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Count:
    """Hold what the kernel counted on a link's end, as a host sees it.

    Bytes are of frames, but a super-packet's further headers are not counted. dropped: packets that
    found the queue full.
    """

    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int
    dropped: int

    def since(self, before: Count) -> Count:
        """Return what was counted since `before`."""
        return Count(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))
