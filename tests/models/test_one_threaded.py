"""Threads that compute with one thread each."""

import threading

import pytest
import torch

from fastadv.models.one_threaded import OneThreaded


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_thread_has_one_also_after_its_first_operation(three_threads):
    threads = OneThreaded(3)
    left, right = torch.randn(16, 1152), torch.randn(1152, 256)
    started = threading.Barrier(3)  # so that each of them has a call

    def call(_):
        started.wait()
        _ = left @ right
        return threading.get_ident(), torch.get_num_threads()

    for _ in range(2):
        idents, counts = zip(*threads.map(call, range(3)), strict=True)
        assert len(set(idents)) == 3
        assert counts == (1, 1, 1)
    assert torch.get_num_threads() == 3


def test_a_product_has_the_bits_of_one_thread(three_threads):
    left, right = torch.randn(16, 1152), torch.randn(1152, 256)
    torch.set_num_threads(1)
    expected = left @ right
    torch.set_num_threads(3)
    for found in OneThreaded(3).map(lambda _: left @ right, range(6)):
        assert torch.equal(found, expected)
