"""Networks that a lab cannot emulate are refused before it makes a namespace."""

from __future__ import annotations

import pytest

from thinwire.errors import LabError
from thinwire.lab import Lab, limits
from thinwire.net import Change, Network, uniform


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (uniform(65), "65 hosts: a lab has 1 to 64"),
        (uniform(2, message_s=1e-3), "message=0.001 s"),
        (uniform(2, 100.0), "100 bit/s: a lab's slowest rate is 8 kbit"),
        (uniform(2, 1e12), "queue=0.2 s at 1000 Gb/s is more than the 4.29 GB"),
        (
            uniform(2, queue_s=60.0, changes=(Change(1, up_bits_per_s=1e10),)),
            "queue=60 s at 10 Gb/s is more",
        ),
        (
            uniform(2, sysctl={"fs.inotify.max_queued_events": "9"}),
            r"the whole machine's, not a host's: only net\.\*",
        ),
    ],
)
def test_what_a_lab_cannot_emulate_is_refused(network: Network, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        Lab(network)


def test_what_it_can_is_not() -> None:
    limits.check(uniform(64, 1e9))
