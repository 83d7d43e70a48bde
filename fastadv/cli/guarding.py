"""What ``serve``, ``detect export``, ``detect explain`` and ``detect score`` share: a detector and its threshold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from fastadv.cli.fields import Without
from fastadv.cli.options import ALIGNING, InputOptions
from fastadv.core.errors import ArgumentError

if TYPE_CHECKING:
    from fastadv.data import FaceSource
    from fastadv.detection import Detector, Guard, Thresholds
    from fastadv.models import FaceModel

_EQUAL, _RATE = "equal error rate", "false-alarm rate"

Network = Annotated[InputOptions, Without("data", "landmarks", *ALIGNING)]


class GuardPrecision(str, Enum):
    fp32, bf16 = "fp32", "bf16"


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """A detector and its threshold."""

    panel: ClassVar[str] = "Detector"

    detector: Annotated[Path, Option(help="Detector, a file of 'detect fit' or 'detect calibrate'.")]
    threshold: Annotated[float | None, Option(help="Flag images with this score or a higher one.")] = None
    false_alarm: Annotated[
        float | None,
        Option(
            help="Flag at the threshold of this false-alarm rate (default: 0.01; where the detector was not calibrated "
            "for 0.01, the first rate of 'detect calibrate', or else the equal error rate)."
        ),
    ] = None
    equal_error: Annotated[bool, Option("--eer", help="Flag at the threshold of the equal error rate.")] = False
    gallery: Annotated[
        Path | None,
        Option(
            help="Add the people of this folder of identities to the classes of a detector of the reading 'relative'."
        ),
    ] = None

    def choose(self, found: Detector) -> tuple[float, str]:
        """The threshold, and in words where it comes from.

        Raises:
            ArgumentError: Two of the options, a detector without thresholds, or a rate that it is not calibrated for.
        """
        given = {"--threshold": self.threshold, "--false-alarm": self.false_alarm, "--eer": self.equal_error or None}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ArgumentError(f"{names[0]}: expected it or {names[1]}, got both")
        if self.threshold is not None:
            return self.threshold, "--threshold"
        if found.thresholds is None:
            raise ArgumentError(
                f"{(names or ['--threshold'])[0]}: expected a calibrated detector, got one without thresholds; "
                "give --threshold"
            )
        known = found.thresholds
        if self.false_alarm is not None:
            return known.at_false_alarm(self.false_alarm), _rate(self.false_alarm, known)
        if self.equal_error:
            if known.equal_error is None:
                raise ArgumentError(
                    "--eer: expected a detector that was calibrated on adversarial images too, got one calibrated on "
                    "natural images; give --false-alarm"
                )
            return known.equal_error, _EQUAL
        rate = known.usual_rate
        words = _rate(rate, known) if rate is not None else f"{_EQUAL}: the detector is not calibrated for {_RATE} 0.01"
        return known.at(rate), words

    def enrolled(
        self,
        found: Detector,
        model: FaceModel,
        *,
        given: InputOptions | None = None,
        source: FaceSource | None = None,
        device: str = "cpu",
    ) -> Detector:
        """The detector with the people of the gallery, where there is one.

        Args:
            found: The detector.
            model: Its network.
            given: What the command reads: faces of a gallery are detected and aligned as its own are.
            source: The faces that the command scores, of which none may be in the gallery.
            device: Where faces are detected.

        Raises:
            ValueError: The reading is 'raw', or the gallery has no faces, or some of the source.
            ImageError, AlignmentError: A face cannot be read.
        """
        if self.gallery is None:
            return found
        import torch

        from fastadv.data.dealt_pairs import by_identity
        from fastadv.data.names import several
        from fastadv.detection import enrol
        from fastadv.runs.faces import files_of_both, is_aligned, open_faces_of

        search = None if given is None or is_aligned(self.gallery) else given.search(given.data, device)
        faces = open_faces_of(model, self.gallery, search=search)
        shared = () if source is None else files_of_both(faces, source)
        if shared:  # an image is nearer to a mean that it is part of, and would look natural
            raise ArgumentError(f"--gallery: expected other images than those of --data, got {several(shared)} in both")
        faces.check(faces.names)
        people = by_identity(faces.names)
        pairs = ((name, torch.stack([faces.load(face).image for face in own])) for name, own in people.items())
        return enrol(found, model, pairs)

    def open(self, given: InputOptions, *, precision: str = "fp32", device: str = "cpu") -> tuple[Guard, str]:
        """A guard of a network, and in words where its threshold comes from.

        Raises:
            ValueError: As ``choose``, or a detector of another network or of other weights, or as the classes.
        """
        from fastadv.detection import Guard, load_detector
        from fastadv.studies.detection.score import check_network

        found = load_detector(self.detector)
        threshold, words = self.choose(found)
        opened = given.open_model(device)
        check_network(found, opened)
        found = self.enrolled(found, opened)
        return Guard(model=opened, detector=found, threshold=threshold, precision=precision), words


def _rate(rate: float, known: Thresholds) -> str:
    source = known.calibrated_on.get("data")
    return f"{_RATE} {rate:g}" + ("" if source is None else f" on {known.natural} images of {source}")
