"""A mask that writes where it reads changes no bit of a network's output or gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastadv.models import load
from fastadv.surrogates import FeatureDropout, StepKey, masks
from fastadv.testing.tolerances import assert_same_bits

NETWORKS = ["mobilefacenet", "mobileface_v2", "edgeface_xs", "iresnet18", "synth-mobile", "synth-shuffle", "synth-vgg"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_and_gradient(name, precision, monkeypatch):
    model = load(name) if name.startswith("synth") else load(name, random_weights_seed=0)
    x = torch.rand(3, 3, *model.input_size, generator=torch.Generator().manual_seed(1))
    key = StepKey(seed=5, ids=torch.tensor([3, 4, 3]), ticks=torch.tensor([0, 7, 0]))

    def evaluated() -> tuple[Tensor, Tensor, Tensor]:
        masked = FeatureDropout(rate=0.2).bind(model, precision=precision)
        leaf = x.clone().requires_grad_(True)
        y = masked(leaf, key)
        (gradient,) = torch.autograd.grad(y[:, :7].sum(), leaf)
        with torch.no_grad():
            return y.detach(), gradient, masked(x, key)

    in_place = evaluated()
    with monkeypatch.context() as patch:
        patch.setattr(masks, "_CONVOLUTIONS", ())
        apart = evaluated()
    for one, other in zip(in_place, apart, strict=True):
        assert_same_bits(one, other)
    assert_same_bits(in_place[0], in_place[2])
    assert bool((in_place[1] != 0).any())
