"""Embeddings of an image and of its mirror image, joined."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastadv.models.face_model import FaceModel, check_face_model


class Mirrored(nn.Module):
    """`[f(x), f(x')]`: images `(N, C, H, W)` to features `(N, 2 D)`, x' being x with its columns reversed.

    Two passes, so that a random mask of an evaluation is the same for both.

    Args:
        network: f, from images to `(N, D)` features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.network(x), self.network(x.flip(3))), 1)


def mirrored(model: FaceModel) -> FaceModel:
    """A model whose embedding joins that of the image and that of its mirror image, `(N, 2 D)`.

    It shares the parts of ``model``. It has no class head, which takes D features, and no taps, since every layer runs
    twice.

    Raises:
        TypeError: ``model`` is no ``FaceModel``.

    Source:
        "Adversarial attack as a defence", 2021, section 4: the 1,024 features of CosFace, whose network has 512.
    """
    check_face_model(model)
    made = model.replace(layers=(), head=None)
    made.backbone = Mirrored(model.backbone).train(model.training)
    return made
