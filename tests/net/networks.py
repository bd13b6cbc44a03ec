"""Networks that hypothesis draws, for the tests of all that uses one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from thinwire.net import Change, Host, Network, Pair, Trunk, Wire

RATES = st.none() | st.integers(8_000, 10**11).map(float)
SECONDS = st.integers(0, 30_000_000).map(lambda us: us / 1e6)
WIRES = st.builds(Wire, SECONDS, SECONDS, st.integers(0, 9999).map(lambda n: n / 10_000))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    switches = ["switch", "east", "west"][: draw(st.integers(1, 3))]
    hosts = [
        Host(
            f"host{i}",
            draw(RATES),
            draw(RATES),
            draw(st.sampled_from(switches)),
            draw(st.sampled_from([1.0, 2.5])),
        )
        for i in range(4)
    ]
    hosts[0] = replace(hosts[0], switch="switch")
    links = [
        Trunk(
            (draw(st.sampled_from(switches[:i])), switches[i]),
            draw(RATES),
            draw(RATES),
            draw(WIRES),
        )
        for i in range(1, len(switches))
    ]
    pairs = [Pair(("host0", "host3"), draw(WIRES))] if draw(st.booleans()) else []
    changes = [
        Change(3.0, 2.0, cut=("host1",)),
        Change(1.0, up_bits_per_s=2e6),
        Change(1.5, pair=("host1", "host2"), latency_s=0.125),
    ]
    return Network(
        tuple(hosts),
        tuple(links),
        draw(WIRES),
        tuple(pairs),
        tuple(draw(st.permutations(changes))),
        sysctl={"net.a.b": "1"},
    )
