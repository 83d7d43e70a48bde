"""The process's one setting of CUDA's products, among threads; it can be set without a device."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastadv.models.float32_math import float32_math

CUDA = torch.device("cuda")


def setting() -> tuple[str, str, bool, bool]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    precisions = matmul.fp32_precision, cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return *precisions, cudnn.deterministic, cudnn.benchmark


EXACT, FAST = ("ieee", "ieee", True, False), ("tf32", "tf32", True, False)


def test_it_is_set_nested_and_restored() -> None:
    before = setting()
    with float32_math(CUDA, tf32=True):
        assert setting() == FAST
        with float32_math(CUDA, tf32=False):
            assert setting() == EXACT
            with float32_math(CUDA, tf32=False):
                assert setting() == EXACT
        assert setting() == FAST
    assert setting() == before
    with float32_math(torch.device("cpu"), tf32=True):
        assert setting() == before


def test_the_users_benchmark_of_cudnn_is_off_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with float32_math(CUDA, tf32=True):
        assert setting() == FAST
    assert torch.backends.cudnn.benchmark


def test_every_thread_has_what_it_wants_and_the_last_restores() -> None:
    before, wrong = setting(), []

    def work(first: int) -> None:
        for k in range(100):
            tf32 = (k + first) % 2 == 0
            with float32_math(CUDA, tf32=tf32):
                time.sleep(1e-5)
                with float32_math(CUDA, tf32=k % 3 == 0):
                    time.sleep(1e-5)
                    wrong.append(setting() != (FAST if k % 3 == 0 else EXACT))
                wrong.append(setting() != (FAST if tf32 else EXACT))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(wrong) == 800
    assert not any(wrong)
    assert setting() == before


def test_threads_that_want_the_same_do_not_wait() -> None:
    together = threading.Barrier(3, timeout=10)

    def work(_: int) -> None:
        with float32_math(CUDA, tf32=False):
            together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
