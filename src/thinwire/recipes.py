"""Named strategies of the literature, by their public name: `thinwire.recipes.powersgd(rank=4)`."""

from thinwire.strategy.recipes import *  # noqa: F403
from thinwire.strategy.recipes import __all__  # noqa: F401
