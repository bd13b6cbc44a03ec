"""Thinwire: training and serving large language models where the wire between the machines is thin.

Two lines go into the loop you have:

    sync = thinwire.attach(model, optimizer, thinwire.recipes.powersgd(rank=4))
    ...                                  # forward, backward, clipping, optimizer.step() as always
    sync.close()

*When* to talk (`thinwire.when`), *what* to say (`thinwire.what`), *how* to carry it
(`thinwire.how`) and *on* which tensors (`thinwire.on`) are the four slots of a `thinwire.Strategy`,
freely combined.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thinwire.version import __version__

if TYPE_CHECKING:
    from thinwire import recipes
    from thinwire.adapters.ddp import ddp_hook
    from thinwire.engine.attach import attach
    from thinwire.quorum.join import join
    from thinwire.strategy import Strategy

__all__ = ["Strategy", "__version__", "attach", "ddp_hook", "join", "recipes"]

_HOMES = {
    "Strategy": "thinwire.strategy",
    "attach": "thinwire.engine",
    "ddp_hook": "thinwire.adapters.ddp",
    "join": "thinwire.quorum",
    "recipes": "thinwire.recipes",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for, so that `import thinwire` stays quick."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'thinwire' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    module = importlib.import_module(_HOMES[name])
    return module if module.__name__ == f"thinwire.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
