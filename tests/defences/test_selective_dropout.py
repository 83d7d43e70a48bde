"""Selective dropout: which filters are found, and that they are off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastadv.defences import DroppedFilters, SelectiveDropout
from fastadv.models import FaceModel, prepare
from fastadv.models.outputs import at_layer, output_of

HALF = (0.5, 0.5, 0.5)


@torch.no_grad()
def brute_force(model, clean, attacked):
    """Change and content of every filter, layer by layer."""
    found = {}
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            a, b = (
                output_of(model, at_layer(name), x).view(len(x), module.out_channels, -1) for x in (clean, attacked)
            )
            found[name] = ((b - a).abs().mean((0, 2)), a.abs().mean((0, 2)))
    return found


def test_it_takes_the_filters_that_moved_most(model, faces):
    clean = faces(10)
    attacked = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = brute_force(model, clean, attacked)
    found = SelectiveDropout(gamma=1, kappa=0.34).fit(model, clean, attacked, batch=3)
    ((name, filters),) = found.filters
    change = {k: float(moved.sum() / carried.sum()) for k, (moved, carried) in expected.items()}
    assert change[name] == max(change.values())
    count = round(0.34 * len(expected[name][0]))
    assert set(filters) == set(expected[name][0].topk(count).indices.tolist())
    both = SelectiveDropout(gamma=2, kappa=0.01).fit(model, clean, attacked)
    assert [(k, len(f)) for k, f in both.filters] == [("0", 1), ("3", 1)]
    for k, (filter_,) in both.filters:
        assert int(expected[k][0].argmax()) == filter_


def test_a_filter_that_alone_is_attacked_is_found():
    """Filter 2 reads the red channel, and only that is changed."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        net[0].weight[:] = 0
        net[0].weight[[0, 1, 3], 1] = 1.0
        net[0].weight[2, 0] = 1.0
    model = FaceModel(net, input_size=(4, 4), mean=HALF, std=HALF, name="colours").eval()
    clean = torch.full((2, 3, 4, 4), 0.25)
    attacked = clean.clone()
    attacked[:, 0] += 0.1
    assert SelectiveDropout(gamma=1).fit(model, clean, attacked).filters == (("0", (2,)),)


def test_a_convolution_that_no_image_passes_is_no_candidate():
    """EdgeFace adds an encoding of positions that is made of a table by a convolution."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(1, 3, 4, 4))
            self.project, self.see = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.see(x + self.project(self.table)).flatten(1)

    model = FaceModel(Positions(), input_size=(4, 4), mean=HALF, std=HALF, name="positions").eval()
    clean = torch.full((3, 3, 4, 4), 0.25)
    ((name, _),) = SelectiveDropout(gamma=1).fit(model, clean, clean + 0.1).filters
    assert name == "see"
    with pytest.raises(ValueError, match="gamma: expected at most 1, the convolutions that images pass, got 2"):
        SelectiveDropout(gamma=2).fit(model, clean, clean + 0.1)


def test_the_filters_are_off(model, faces):
    x = faces(4)
    value = DroppedFilters(filters=(("0", (1, 4)), ("3", (0,))), gamma=2, kappa=0.1)
    made = value.wrap(model)
    assert made.name == "tiny0+selective2-0.1"
    maps = output_of(made, at_layer("3"), x).view(4, 8, -1)
    assert bool((maps[:, 0] == 0).all())
    first = output_of(made, at_layer("0"), x).view(4, 6, -1)
    bare = output_of(model, at_layer("0"), x).view(4, 6, -1)
    assert bool((first[:, [1, 4]] == 0).all())
    assert torch.equal(first[:, [0, 2, 3, 5]], bare[:, [0, 2, 3, 5]])
    torch.testing.assert_close(prepare(made)(x), made(x))
    assert not torch.equal(made(x), model(x))
    assert not value.random


def test_errors(model, faces):
    x = faces(3)
    with pytest.raises(ValueError, match="gamma: expected an integer"):
        SelectiveDropout(gamma=0)
    with pytest.raises(ValueError, match="kappa: expected a number"):
        SelectiveDropout(kappa=0)
    with pytest.raises(TypeError, match="expected a FaceModel, got Linear"):
        SelectiveDropout().fit(nn.Linear(1, 1), x, x)
    with pytest.raises(ValueError, match="gamma: expected at most 2"):
        SelectiveDropout(gamma=3).fit(model, x, x)
    with pytest.raises(ValueError, match="attacked: expected the shape of clean"):
        SelectiveDropout(gamma=1).fit(model, x, x[:2])
    with pytest.raises(ValueError, match="attacked: expected images that move a filter away from clean"):
        SelectiveDropout(gamma=1).fit(model, x, x)
    with pytest.raises(ValueError, match="batch: expected an integer"):
        SelectiveDropout(gamma=1).fit(model, x, 1 - x, batch=0)
    with pytest.raises(ValueError, match="expected a convolution '9' with at least 1 filters"):
        DroppedFilters(filters=(("9", (0,)),), gamma=1, kappa=0.1).wrap(model)
    with pytest.raises(ValueError, match="expected a convolution '0' with at least 7 filters"):
        DroppedFilters(filters=(("0", (6,)),), gamma=1, kappa=0.1).wrap(model)
    with pytest.raises(TypeError, match="expected a FaceModel, got Linear"):
        DroppedFilters(filters=(), gamma=1, kappa=0.1).wrap(nn.Linear(1, 1))
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        SelectiveDropout(gamma=1).fit(model, x, 1 - x)
