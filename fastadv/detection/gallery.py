"""People whom a detector was not fitted on, as classes of it: a gallery of templates, and no class head."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.detection.detectors import Detector
from fastadv.detection.medoids import medoids
from fastadv.detection.representatives import Representatives, centroids
from fastadv.detection.taps import LayerTap
from fastadv.models import FaceModel
from fastadv.models.checks import check_images

_BATCH = 32


def enrol(detector: Detector, model: FaceModel, people: Iterable[tuple[str, Tensor]]) -> Detector:
    """A relative detector whose classes are its own and the people of a gallery. ::

        detector = fa.detection.enrol(fa.load_detector(file), model, {"ada": images_of_ada}.items())
        verdicts = fa.Guard(model=model, detector=detector)(images, claimed=["ada"] * len(images))

    A person is represented in every layer as the detector's own classes are, by the centroid or the medoid of the
    pooled layer outputs; one image suffices. A person who is a class of the detector already is replaced. Memory:
    ``sum C_l`` numbers a person, and the images of one person at a time.

    Args:
        detector: fitted on layers of the model, with the reading ``relative``.
        model: in evaluation mode.
        people: names, and of each person ``(N, 3, H, W)`` images in [0, 1], N >= 1.

    Returns:
        The detector with its thresholds, which were measured with its own classes.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or value, the detector was fitted on another
            model, or its reading is ``raw``.
    """
    own = detector.trajectory.representatives
    detector.with_representatives(own)  # refuses the reading before a gallery is read
    tap = LayerTap(model=model, layers=own.layers)
    added = [_represented(own, tap, name, images) for name, images in people]
    return detector.with_representatives(own.joined(*added))


@torch.no_grad()
def _represented(own: Representatives, tap: LayerTap, name: str, images: Tensor) -> Representatives:
    check_images(name, images)
    if images.dim() != 4 or not len(images):
        raise ArgumentError(f"{name}: expected shape (N, 3, H, W) with N >= 1, got {tuple(images.shape)}")
    parts = [tap(part.to(tap.model.device, torch.float32)).values for part in images.split(_BATCH)]
    values = [torch.cat(column) for column in zip(*parts, strict=True)]
    batch = values, torch.zeros(len(images), dtype=torch.int64, device=values[0].device)
    if own.kind == "centroid":
        return centroids([batch], layers=own.layers, classes=(name,), model=tap.model.name)
    metric = own.provenance.get("medoid_metric", "l2")
    return medoids([batch], layers=own.layers, classes=(name,), model=tap.model.name, metric=metric)
