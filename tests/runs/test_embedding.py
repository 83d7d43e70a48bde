"""Embeddings that are no numbers, or that point nowhere, are refused by the name of the image."""

import pytest
import torch
from torch import nn

from fastadv.data import SyntheticFaces
from fastadv.models import FaceModel
from fastadv.runs.embedding import embed
from fastadv.studies.verify import verify

PEOPLE = SyntheticFaces(identities=4, per_identity=2, seed=5)


class Broken(nn.Module):
    """The means of quarters of the picture; ``value`` for pictures whose first pixel is bright."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x):
        rows = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale
        return torch.where((rows[:, :1] > self.limit), torch.full_like(rows, self.value), rows)

    limit = 0.0


def broken(value):
    ones, zeros = (1.0,) * 3, (0.0,) * 3
    return FaceModel(Broken(value), input_size=(112, 112), mean=zeros, std=ones, name="broken").eval()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_they_are_refused_by_name(value):
    names = PEOPLE.names
    means = {n: float(PEOPLE.load(n).image[0, :56, :56].mean()) for n in names}
    brightest = max(means, key=means.get)
    model = broken(value)
    model.backbone.limit = sorted(means.values())[-2] + 1e-6
    with pytest.raises(
        ValueError, match=f"{brightest}: expected a finite embedding that is not zero, got another from broken"
    ):
        embed(PEOPLE, names, model)
    with pytest.raises(ValueError, match=brightest):
        verify(PEOPLE, PEOPLE.pairs(4, folds=1, seed=1), model)
    rest = [n for n in names if n != brightest]
    assert set(embed(PEOPLE, rest, model)) == set(rest)
