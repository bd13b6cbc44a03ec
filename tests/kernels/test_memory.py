"""The pool that large tensors come from."""

import gc
import threading

import pytest
import torch

from thinwire.kernels import memory

N = memory.LARGE  # of float32: four times as many bytes as are worth the pool


def test_what_nothing_refers_to_is_used_again_and_what_is_in_use_is_not() -> None:
    pool = memory.Pool()
    first = pool.take(N, torch.float32)
    place = first.data_ptr()
    view = first.fill_(7)[5:9]
    del first
    gc.collect()
    second = pool.take(N, torch.float32)  # the view holds the first
    assert second.data_ptr() != place
    second.fill_(1)
    assert view.tolist() == [7.0] * 4
    del view
    gc.collect()
    third = pool.take(N, torch.float32)
    assert third.data_ptr() == place
    assert pool.take(N + memory._PAGE, torch.float32).data_ptr() != place


def test_no_more_is_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 8 * N)
    pool = memory.Pool()
    held = [pool.take(N, torch.float32) for _ in range(5)]
    held.clear()
    gc.collect()
    assert sum(map(len, pool._free.values())) == 2


def test_what_is_given_back_leaves_what_is_in_use() -> None:
    pool = memory.Pool()
    used, free = pool.take(N, torch.float32).fill_(7), pool.take(N, torch.float32)
    del free
    gc.collect()
    assert sum(map(len, pool._free.values())) == 1
    pool.clear()
    assert sum(map(len, pool._free.values())) == 0
    assert bool((used == 7).all())


def test_threads_never_share_a_region() -> None:
    pool, wrong = memory.Pool(), []

    def work(number: int) -> None:
        for _ in range(50):
            x = pool.take(memory.LARGE // 4, torch.float32).fill_(number)
            y = pool.take(memory.LARGE // 4, torch.float32).fill_(-number)
            if not bool((x == number).all() and (y == -number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.uint8, torch.int64, torch.bfloat16]
)
@pytest.mark.parametrize("n", [0, 1, 100, N])
def test_it_is_like_torch_empty(n: int, dtype: torch.dtype) -> None:
    x = memory.empty(n, dtype)
    assert (x.shape, x.dtype, x.device.type, x.is_contiguous()) == ((n,), dtype, "cpu", True)
    x.zero_()
    parts = [torch.ones(n).to(dtype), torch.zeros(3).to(dtype)]
    assert torch.equal(memory.cat(parts), torch.cat(parts))
