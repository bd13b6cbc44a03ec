"""Decode, fill and add by one function, for codecs that write what they decode where it belongs."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from thinwire.core import Coder, RankContext, Spec, State, check_nbytes


class Direct(Coder):
    """A codec whose payload opens by itself, to memory of its own or of the caller.

    A codec of this kind gives `_decoded`.
    """

    @abstractmethod
    def nbytes(self, spec: Spec) -> int: ...

    @abstractmethod
    def _decoded(
        self, out: Tensor | None, payload: Tensor, spec: Spec, add: bool = False
    ) -> Tensor:
        """Decode a payload of the right size, into `out` where it is given, or add to it."""

    def decode(
        self, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> Tensor:
        check_nbytes(self, payload, self.nbytes(spec))
        return self._decoded(None, payload, spec)

    def fill(
        self, out: Tensor, payload: Tensor, spec: Spec, state: State, ctx: RankContext, sender: int
    ) -> None:
        check_nbytes(self, payload, self.nbytes(spec))
        self._decoded(out, payload, spec)

    def accumulate(
        self,
        total: Tensor,
        payload: Tensor,
        spec: Spec,
        state: State,
        ctx: RankContext,
        sender: int,
    ) -> None:
        check_nbytes(self, payload, self.nbytes(spec))
        self._decoded(total, payload, spec, add=True)
