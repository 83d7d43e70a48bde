"""A recorded call: replayed on what its tensors hold then."""

import pytest
import torch

from fastadv.models.capture import Captured

pytestmark = pytest.mark.gpu


def test_a_replay_reads_what_is_there_now_and_fills_the_same_tensor():
    x = torch.zeros(8, device="cuda")
    double = Captured(lambda: 2 * x)
    x.copy_(torch.arange(8.0))
    first = double()
    assert first.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    x.add_(1)
    assert double() is first
    assert first.tolist() == [2, 4, 6, 8, 10, 12, 14, 16]


def test_recordings_that_share_memory_and_a_stream_answer_in_turn():
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    x = torch.ones(64, device="cuda")
    sums = [Captured(lambda k=k: (k * x).cumsum(0)[-1:], pool=pool, stream=stream) for k in (1, 2)]
    for _ in range(3):
        for k, total in enumerate(sums, start=1):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found = total().clone()
            torch.cuda.current_stream().wait_stream(stream)
            assert found.tolist() == [64.0 * k]
