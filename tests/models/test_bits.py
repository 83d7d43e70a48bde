"""In a batch of fixed size, an image's embedding and gradient have the same bits in any slot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastadv.models import FaceModel, prepare

SLOTS = 8


def evaluation(model: FaceModel, batch: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    x = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad((y * direction).sum(), x)
    return y.detach(), gradient


@pytest.mark.faces
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mobilefacenet", "mobileface_v2", "edgeface_xs"])
def test_bits_do_not_depend_on_slot_or_neighbours(
    name: str,
    precision: str,
    published: Callable[[str], FaceModel],
    pairs: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    model = prepare(published(name), precision=precision)
    faces = torch.cat(pairs[1])
    image, others = faces[0], faces[1:]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(model.embedding_size, generator=generator)
    expected: tuple[Tensor, Tensor] | None = None
    for slot in (0, 3, 4, 7):
        batch = others[torch.randperm(len(others), generator=generator)[:SLOTS]].clone()
        batch[slot] = image
        outputs, gradients = evaluation(model, batch, direction)
        expected = expected or (outputs[slot], gradients[slot])
        assert torch.equal(outputs[slot], expected[0])
        assert torch.equal(gradients[slot], expected[1])
