"""Refuse networks that the lab cannot emulate, before it makes a namespace."""

from __future__ import annotations

from collections.abc import Iterator

from thinwire.errors import LabError
from thinwire.net import Change, Host, Network, Trunk

MOST_HOSTS = 64
MOST_QUEUED = (1 << 32) - 1  # bytes that tc's token bucket can hold back
LEAST_BITS_PER_S = 8e3


def check(network: Network) -> None:
    """Refuse a network that the lab cannot emulate.

    Raises:
        LabError: every reason.
    """
    if reasons := list(_reasons(network)):
        raise LabError("\n".join(reasons))


def _reasons(network: Network) -> Iterator[str]:
    if len(network.hosts) > MOST_HOSTS:
        yield f"{len(network.hosts)} hosts: a lab has 1 to {MOST_HOSTS}"
    if network.message_s:
        yield (
            f"message={network.message_s:g} s: a lab's hosts take the time for a message that they "
            "take; leave it out"
        )
    # tc's own limits: the least rate, and the bytes that a token bucket can hold.
    limited: list[Host | Trunk | Change] = [*network.hosts, *network.trunks, *network.changes]
    rates = [
        rate
        for each in limited
        for rate in (each.up_bits_per_s, each.down_bits_per_s)
        if rate is not None
    ]
    if rates and min(rates) < LEAST_BITS_PER_S:
        yield f"{min(rates):g} bit/s: a lab's slowest rate is 8 kbit"
    # two milliseconds: twice what the token bucket holds
    if max(rates, default=0.0) / 8 * max(network.queue_s, 0.002) > MOST_QUEUED:
        yield (
            f"queue={network.queue_s:g} s at {max(rates) / 1e9:g} Gb/s is more than the 4.29 GB "
            "that tc holds back: ask for less of either"
        )
    for key in network.sysctl:
        if not key.startswith("net."):
            yield (
                f"sysctl {key} is the whole machine's, not a host's: only net.* can be set in a lab"
            )
