"""Processor time of a thread."""

import threading
import time

from thinwire.drive.threads import thread_ids, thread_s


def test_a_thread_that_works_takes_processor_time() -> None:
    seen: list[float] = []

    def work() -> None:
        me = threading.get_native_id()
        begun, until = thread_s(me), time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        seen.append(thread_s(me) - begun)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not thread_ids() or 0.02 < seen[0] < 5
    assert thread_s(1 << 30) == 0.0
