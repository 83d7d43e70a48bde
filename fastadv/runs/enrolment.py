"""Enrolment: templates of people from folders of their faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks import Gallery
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.models import FaceModel
from fastadv.runs.embedding import embed
from fastadv.runs.goals import Enrolled, identity_of


def enrol(
    source: FaceSource, names: Sequence[str], model: FaceModel, *, metric: str = "cosine", progress: Progress = silent
) -> Enrolled:
    """A template for everybody on the named images: the mean of their unit embeddings, on the model's device.

    Args:
        source: Where the images are.
        names: Which of them; all images of a person make the template.
        model: In evaluation mode.
        metric: ``"cosine"`` brings the templates to unit length, so that the nearest is the most similar;
            ``"euclidean"`` leaves the means as they are (Massoli et al., 5.3.1).
        progress: Told of the embeddings.

    Raises:
        ValueError: The images show fewer than two people.
        ImageError, AlignmentError: A face cannot be read.
    """
    return enrolled_from(embed(source, names, model, progress=progress), metric=metric, device=model.device)


def enrolled_from(embeddings: Mapping[str, Tensor], *, metric: str, device: torch.device | str = "cpu") -> Enrolled:
    """As ``enrol``, from embeddings by the names of their images."""
    people = tuple(sorted({identity_of(name) for name in embeddings}))
    if len(people) < 2:
        raise ArgumentError(f"gallery: expected at least two people, got {len(people)}")
    classes = {person: k for k, person in enumerate(people)}
    labels = torch.tensor([classes[identity_of(name)] for name in embeddings])
    made = Gallery.from_embeddings(torch.stack(list(embeddings.values())), labels)
    templates = F.normalize(made.templates, dim=1) if metric == "cosine" else made.templates
    return Enrolled(people=people, gallery=Gallery(templates=templates, classes=made.classes).to(device))
