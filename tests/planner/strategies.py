"""Every recipe, and the small model that bytes and memory are counted for."""

from thinwire import recipes
from thinwire.planner.shape import Shape

SMALL = Shape(width=16, layers=2)
WORLD = 4
STRATEGIES = {
    name: maker(
        **{
            "two_level": {"node": 2},
            "post_local_sgd": {"start": 2},
            "onebit_adam": {"start": 2},
            "zero_one_adam": {"until": 9},
            "for_link": {"gbits": 1.0},
        }.get(name, {})
    )
    for name, maker in recipes.names().items()
}
