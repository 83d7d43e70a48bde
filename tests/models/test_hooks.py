"""Hooks for the time of a block."""

import pytest
import torch
from torch import nn

from fastadv.models.hooks import hooked


def test_hooks_are_called_in_the_block_and_gone_after_it_whatever_ends_it():
    network, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    x = torch.ones(1, 2)
    after = [(network[0], lambda module, inputs, output: seen.append("after"))]
    before = [(network[1], lambda module, inputs: seen.append("before"))]
    with hooked(after, before):
        network(x)
    with pytest.raises(KeyError), hooked(after, before):
        raise KeyError
    network(x)
    assert seen == ["after", "before"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network)
