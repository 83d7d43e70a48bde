"""A gallery: templates of known classes, and what the nearest of them say of a face."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.attacks.goal import check_classes
from fastadv.core.errors import ArgumentError
from fastadv.models.checks import check_embeddings


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """What an identification compares a face with. Goals that share one share a batch; it equals only itself.

    Attributes:
        templates: ``(T, D)`` finite float32, no row of zeros. With ``from_embeddings`` one mean a class.
        classes: The class of each template, ``(T,)`` integers, of at least two classes.

    Raises:
        ValueError: A field has the wrong shape, type or value.
    """

    templates: Tensor
    classes: Tensor

    def __post_init__(self) -> None:
        good = isinstance(self.templates, Tensor) and self.templates.dim() == 2 and self.templates.is_floating_point()
        if not good:
            got = tuple(self.templates.shape) if isinstance(self.templates, Tensor) else type(self.templates).__name__
            raise ArgumentError(f"templates: expected float embeddings (T, D), got {got}")
        check_embeddings("templates", self.templates)
        check_classes("classes", self.classes)
        if len(self.classes) != len(self.templates):
            raise ArgumentError(
                f"classes: expected one entry for each of {len(self.templates)} templates, got {len(self.classes)}"
            )
        if len(self.classes.unique()) < 2:
            raise ArgumentError(
                "classes: expected two different ones or more, since a goal is about telling them apart, got "
                f"{len(self.classes.unique())}"
            )
        templates = self.templates.detach().float().contiguous()
        with torch.inference_mode(False):  # a tensor of inference mode could not be differentiated through
            object.__setattr__(self, "templates", templates.clone() if templates.is_inference() else templates)
        object.__setattr__(self, "classes", self.classes.to(self.templates.device, torch.int64))

    @staticmethod
    def from_embeddings(embeddings: Tensor, labels: Tensor) -> Gallery:
        """One template for each class that occurs: the mean of its embeddings, not normalised (Massoli et al., 5.3.1).

        Args:
            embeddings: ``(M, D)``.
            labels: ``(M,)`` integers.

        Raises:
            ValueError: As for the class.
        """
        everything = Gallery(templates=embeddings, classes=labels)
        classes, place, counts = everything.classes.unique(return_inverse=True, return_counts=True)
        one = torch.nn.functional.one_hot(place, len(classes)).T.double()
        means = one @ everything.templates.double() / counts[:, None]
        return Gallery(templates=means.float(), classes=classes)

    def to(self, device: torch.device | str) -> Gallery:
        """The same on another device: another gallery."""
        return Gallery(templates=self.templates.to(device), classes=self.classes.to(device))

    def distances(self, embeddings: Tensor) -> Tensor:
        """Euclidean distances to the templates, ``(N, T)``; differentiable in the embeddings.

        Raises:
            ValueError: The embeddings are of another width or on another device.
        """
        if embeddings.shape[1] != self.templates.shape[1]:
            raise ArgumentError(
                f"gallery: expected templates of {embeddings.shape[1]} numbers like the model's embeddings, got "
                f"{self.templates.shape[1]}"
            )
        if embeddings.device != self.templates.device:
            raise ArgumentError(
                f"gallery: expected one on {embeddings.device} like the model, got one on {self.templates.device}; "
                "use gallery.to(device)"
            )
        return ops.centroid_distances([embeddings], [self.templates])[:, 0]

    def vote(self, distances: Tensor, k: int) -> Tensor:
        """The class ``(N,)`` that most of the k nearest templates have; of equal counts, that of the nearest."""
        near = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).indices
        named = self.classes[near]
        votes = (named[:, :, None] == named[:, None, :]).sum(2)
        order = torch.arange(named.shape[1], device=named.device)
        best = (votes * (named.shape[1] + 1) - order).argmax(1, keepdim=True)
        return named.gather(1, best).squeeze(1)
