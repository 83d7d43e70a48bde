"""Whether a detector was fitted on a model, as far as names, widths and the class head can tell."""

from __future__ import annotations

import torch

from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.detection.detectors import Detector
from fastadv.detection.taps import LayerTap
from fastadv.models import FaceModel

_HEADLESS = (
    "the detector was fitted with the choices of a class head, which this network lacks: where no identity is claimed, "
    "the class nearest in the last layer is used, and small perturbations are detected less well"
)


def check_fits(model: FaceModel, detector: Detector) -> None:
    """Raise ValueError unless the detector was fitted on this model's layers, as far as names and widths can tell."""
    representatives = detector.trajectory.representatives
    if representatives.model != model.name:
        raise ArgumentError(
            f"detector: expected one that was fitted on the model {model.name!r}, got one of {representatives.model!r}"
        )
    check_head(model, detector)
    with torch.no_grad():
        grey = torch.full((1, *model.image_shape), 0.5, device=model.device)
        values = LayerTap(model=model, layers=detector.layers)(grey).values
    for layer, value, vectors in zip(detector.layers, values, representatives.vectors, strict=True):
        if value.shape[1] != vectors.shape[1]:
            raise ArgumentError(
                f"detector: expected {value.shape[1]} channels of layer {layer!r}, as the model has, got "
                f"{vectors.shape[1]}"
            )


def check_head(model: FaceModel, detector: Detector) -> None:
    """Raise ValueError for another class head than the detector's, and say so where there is none."""
    names = detector.trajectory.head
    if names is None:
        return
    if model.head is None:
        notify(_HEADLESS)
    elif (logits := getattr(model.head, "out_features", len(names))) != len(names):
        raise ArgumentError(
            f"detector: expected one fitted with the model's {logits} logits, got one with {len(names)}; "
            "load the weights with the class head that it was fitted with"
        )
