"""``fastadv detect calibrate``: a detector's threshold from natural faces."""

from __future__ import annotations

from dataclasses import dataclass

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.data.names import several
from fastadv.detection import Detector, ExpectedRate, expected_rate
from fastadv.detection.calibration import rank_of
from fastadv.detection.check_model import check_head
from fastadv.models import FaceModel
from fastadv.studies.detection.features import extract, images_of, scores_of
from fastadv.studies.detection.plan import people_of
from fastadv.studies.detection.score import CLAIMED, check_network, claimed_classes


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A detector with thresholds from natural faces.

    Attributes:
        detector: With them.
        people: How many people the faces show.
        expected: For each rate, what it will be on new faces.
    """

    detector: Detector
    people: int
    expected: tuple[ExpectedRate, ...]


def calibrate_folder(
    source: FaceSource,
    model: FaceModel,
    detector: Detector,
    *,
    rates: tuple[float, ...],
    name: str,
    claimed: bool = False,
    progress: Progress = silent,
) -> Calibrated:
    """Score natural faces and set the thresholds of false-alarm rates on them.

    Args:
        source: Natural faces that the detector was not fitted on, as they will be met.
        model: The network that the detector was fitted on.
        detector: Its thresholds are replaced.
        rates: False-alarm rates below 1, each at least one by the number of faces plus one.
        name: What the detector's file calls the faces.
        claimed: Every face claims to show the identity of its folder, which must be a class of the detector.
        progress: Told of the faces.

    Raises:
        ValueError: The detector was fitted on another network, there are too few faces for a rate, or a score is no
            finite number.
        ImageError, AlignmentError: A face cannot be read.
    """
    check_network(detector, model)
    check_head(model, detector)
    own = claimed_classes(source, detector) if claimed else None
    chosen = tuple(dict.fromkeys(rates))
    for rate in chosen:
        rank_of(rate, len(source), "false_alarm")
        if rate == 1:
            raise ArgumentError("false_alarm: expected rates below 1, at which every face is flagged, got 1")

    features = extract(model, detector.layers, source.names, images_of(source), stage="scoring", progress=progress)
    scores = scores_of(detector, features, own)
    broken = [face for face, finite in zip(source.names, scores.isfinite().tolist(), strict=True) if not finite]
    if broken:
        raise ArgumentError(f"score: expected finite numbers, got none for {several(broken)}; leave these images out")
    whose = people_of(source.names)
    people = len(set(whose))
    faces = source.identity()
    about = {"data": name, "people": str(people), "sha256": faces["images"]}
    if claimed:
        about[CLAIMED] = "the identity of each face"
    if faces["landmarks"] is not None:
        about["landmarks"] = faces["landmarks"]
    return Calibrated(
        detector=detector.calibrated(scores, rates=chosen, calibrated_on=about),
        people=people,
        expected=tuple(expected_rate(scores, rate, people=whose) for rate in chosen),
    )
