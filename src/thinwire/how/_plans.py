"""Keep the plans of flights, so that each bucket's is made once, not at every step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from thinwire.core import Spec
from thinwire.how._divided import Cut, Step
from thinwire.how._moves import Move

_SPAN_BYTES, _MESSAGE_BYTES, _CHUNK_BYTES = 250, 150, 24  # about, as Python holds them


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of one rank's flights of one bucket.

    spans: by chunk; where `cut` is given, those that this rank adds up. owners: of each chunk, the
    rank of the group where its sum is whole first. moves: its exchanges. steps: the same, where
    spans are encoded at once. cut, cut_of_sums: how the payloads of parts, and of sums, divide.
    """

    spans: Mapping[int, Spec]
    owners: tuple[int, ...]
    moves: tuple[Move, ...]
    steps: tuple[Step, ...] = ()
    cut: Cut | None = None
    cut_of_sums: Cut | None = None

    @property
    def nbytes(self) -> int:
        """Return about how many bytes of memory it takes."""
        messages = sum(len(move.send) + len(move.recv) for move in self.moves)
        messages += sum(len(step.ranks_out) + len(step.ranks_in) for step in self.steps)
        return (
            len(self.spans) * _SPAN_BYTES
            + messages * _MESSAGE_BYTES
            + len(self.owners) * _CHUNK_BYTES
        )


class Plans:
    """A cache of plans, of the least recently used of which it lets go.

    Args:
        most_bytes: how much memory all of them may take, about.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.nbytes = most_bytes, 0
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._lock = threading.Lock()  # lanes and ranks may be threads

    def get(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """Return the plan of a key, which holds all that the plan depends on."""
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan
        plan = make()
        with self._lock:
            if key not in self._plans:
                self._plans[key] = plan
                self.nbytes += plan.nbytes
            while self.nbytes > self.most_bytes and len(self._plans) > 1:
                _, oldest = self._plans.popitem(last=False)
                self.nbytes -= oldest.nbytes
        return plan
