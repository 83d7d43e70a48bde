"""``fastadv detect score``: what a detector says of a folder of faces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.data.names import several
from fastadv.detection import Detector
from fastadv.detection.check_model import check_head
from fastadv.models import FaceModel
from fastadv.models.identity import state_hash, tensors_hash
from fastadv.studies.detection.features import extract, images_of, scores_of
from fastadv.studies.detection.plan import people_of

BACKBONE = "backbone"
"""What a detector's provenance calls the digest of the network's weights."""
CLAIMED = "claimed"
"""What thresholds call the identities that the faces of their calibration claimed."""


@dataclass(frozen=True, kw_only=True)
class ScoredFace:
    """A face and its verdict.

    Attributes:
        name: ``identity/file``.
        score: The detector's logit: the higher, the more adversarial it looks; NaN where it is no number.
        p_value: Share of the natural images of the calibration set that look at least as adversarial; NaN where the
            score is no number, None without a calibration set.
        flagged: Whether it is at or above the threshold, or no number.
    """

    name: str
    score: float
    p_value: float | None
    flagged: bool


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """A folder's verdicts.

    Attributes:
        faces: In the source's order.
        threshold: What they were held against.
    """

    faces: tuple[ScoredFace, ...]
    threshold: float

    @property
    def flagged(self) -> int:
        """How many are."""
        return sum(face.flagged for face in self.faces)


def check_network(detector: Detector, model: FaceModel) -> None:
    """Refuse another network than the one that a detector was fitted on, or the same with other weights.

    Raises:
        ValueError: It is one. Of a detector that does not say which weights it was fitted on, only the name is checked.
    """
    fitted_on = detector.trajectory.representatives.model
    if fitted_on != model.name:
        raise ArgumentError(f"model: expected the detector's, {fitted_on}, got {model.name}")
    # an earlier version counted training batches as weights
    known = state_hash(model.backbone), tensors_hash(model.backbone.state_dict())
    if detector.provenance.get(BACKBONE, known[0]) not in known:
        raise ArgumentError(f"weights: expected those that the detector was fitted on, got others of {model.name}")


def score_folder(
    source: FaceSource,
    model: FaceModel,
    detector: Detector,
    *,
    threshold: float | None = None,
    claimed: bool = False,
    progress: Progress = silent,
) -> ScoreSummary:
    """Score every face, in batches of one fixed shape.

    Args:
        source: The faces.
        model: The network that the detector was fitted on.
        detector: Calibrated.
        threshold: Flag images from this score on; None: as ``Guard`` does, at the false-alarm rate of 1 % or, where
            the detector was not calibrated for that, at its ``Thresholds.usual_rate``.
        claimed: Every face claims to show the identity of its folder, which must be a class of the detector.
        progress: Told of the faces.

    Raises:
        ValueError: The detector was fitted on another network, is not calibrated and there is no threshold, or lacks a
            class that is claimed.
        ImageError, AlignmentError: A face cannot be read.
    """
    check_network(detector, model)
    check_head(model, detector)
    if threshold is None:
        if detector.thresholds is None:
            raise ArgumentError("detector: expected a calibrated one, got one without thresholds; give a threshold")
        threshold = detector.thresholds.at(detector.thresholds.usual_rate)

    own = claimed_classes(source, detector) if claimed else None
    about = {} if detector.thresholds is None else detector.thresholds.calibrated_on
    if about and (CLAIMED in about) is not claimed:
        was, now = ("claims" if claims else "none" for claims in (CLAIMED in about, claimed))
        notify(f"claimed: expected {was}, as thresholds and p-values were measured with, got {now}; calibrate again")

    features = extract(model, detector.layers, source.names, images_of(source), stage="scoring", progress=progress)
    scores = scores_of(detector, features, own)
    p_values = None if detector.thresholds is None else detector.thresholds.p_values(scores)
    rows = zip(
        source.names, scores.tolist(), [None] * len(scores) if p_values is None else p_values.tolist(), strict=True
    )
    # written so that a score that is no number is flagged
    faces = tuple(ScoredFace(name=name, score=s, p_value=p, flagged=not s < threshold) for name, s, p in rows)
    broken = [face.name for face in faces if not math.isfinite(face.score)]
    if broken:
        notify(f"score: expected finite numbers, got none for {several(broken)}; these images are flagged")
    return ScoreSummary(faces=faces, threshold=threshold)


def claimed_classes(source: FaceSource, detector: Detector) -> Tensor:
    """The detector's class ``(N,)`` of each face's identity.

    Raises:
        ValueError: It has none for one of them.
    """
    place = {name: k for k, name in enumerate(detector.trajectory.representatives.classes)}
    people = people_of(source.names)
    unknown = sorted({person for person in people if person not in place})
    if unknown:
        raise ArgumentError(
            f"claimed: expected identities among the {len(place)} classes of the detector, got {several(unknown)}; "
            "add them with a gallery"
        )
    return torch.tensor([place[person] for person in people])
