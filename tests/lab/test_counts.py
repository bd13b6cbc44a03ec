"""What the kernel counts on a link."""

from thinwire.lab import Count


def test_what_was_counted_since() -> None:
    assert Count(10, 20, 3, 4, 1).since(Count(4, 5, 1, 1, 1)) == Count(6, 15, 2, 3, 0)
