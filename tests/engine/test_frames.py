"""Whether a function is running further up the stack."""

from __future__ import annotations

import threading

from thinwire.engine.frames import called_within


def asks() -> bool:
    return called_within("outer", "test_frames.py")


def outer(deep: int) -> bool:
    return asks() if deep == 0 else outer(deep - 1)


def test_it_is_found_at_any_depth_and_only_while_it_runs() -> None:
    assert not asks()
    assert outer(0)
    assert outer(50)
    assert not asks()


def test_its_file_counts() -> None:
    def outer() -> bool:
        return called_within("outer", "another_file.py")

    assert not outer()


def test_the_asker_itself_counts_and_other_threads_do_not() -> None:
    def own() -> bool:
        return called_within("own", "test_frames.py")

    assert own()
    seen: list[bool] = []

    def outer() -> None:
        thread = threading.Thread(target=lambda: seen.append(asks()))
        thread.start()
        thread.join()

    outer()
    assert seen == [False]
