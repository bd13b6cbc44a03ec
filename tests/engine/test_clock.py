"""The clock of a schedule."""

from thinwire.engine.clock import Clock


def test_steps_since_sync_begin_again_where_all_buckets_land() -> None:
    clock = Clock()
    seen = []
    for synced in (False, False, True, False):
        clock.within = True
        clock.advance(synced=synced)
        assert not clock.within
        seen.append((clock.step, clock.steps_since_sync))
    assert seen == [(1, 1), (2, 2), (3, 0), (4, 1)]


def test_a_clock_goes_on_from_a_checkpoint() -> None:
    clock = Clock(step=3, accumulating=True)
    clock.restart(40, 2)
    assert (clock.step, clock.began_at, clock.steps_since_sync) == (40, 40, 2)
    assert not clock.accumulating
