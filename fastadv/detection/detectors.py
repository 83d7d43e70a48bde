"""A detector as it is deployed: representatives, distance, network and thresholds, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastadv import backends, ops
from fastadv.core.errors import ArgumentError
from fastadv.detection import tensor_file
from fastadv.detection.calibration import Thresholds, calibrate
from fastadv.detection.networks import KINDS, Architecture, Network
from fastadv.detection.representatives import Representatives, check_alike, from_file
from fastadv.detection.tensor_file import DetectionFileError, TensorFile
from fastadv.detection.trajectory import Trajectory
from fastadv.models import open_device
from fastadv.ops.layers import DISTANCES
from fastadv.ops.prepared_score import READINGS

_FILE = "detector"
_SCORES = "calibration_scores"


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """Tells adversarial images from natural ones by their trajectories.

    Used as::

        tap = LayerTap(model=model, layers=detector.layers)
        tapped = tap(images)
        flagged = detector.score(tapped.values) >= detector.thresholds.at_false_alarm(0.01)

    A detector with the reading ``relative`` works on other classes than those it was fitted on, however many
    (:meth:`with_representatives`, :func:`fastadv.detection.enrol`), and takes the class that an image claims to show.

    Attributes:
        trajectory: embeds an image.
        network: reads the embedding.
        thresholds: where to draw the line and what a score means, or None before :meth:`calibrated`.
        provenance: further facts, such as the attacks it was fitted on.

    Raises:
        ValueError: the network was made for embeddings of another shape, or is in training mode.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    trajectory: Trajectory
    network: Network
    thresholds: Thresholds | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.network.mean.shape) != self.trajectory.shape:
            came = str(tuple(self.network.mean.shape))
            raise ArgumentError(
                f"network: expected one for embeddings of {self.trajectory.shape}, like the trajectory's, got "
                f"one for {came}"
            )
        if self.network.training:
            raise ArgumentError("network: expected one in evaluation mode, got one in training mode; call .eval()")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers to tap, in order."""
        return self.trajectory.representatives.layers

    def score(self, values: Sequence[Tensor], own: Tensor | None = None) -> Tensor:
        """How adversarial images look. Differentiable in the values.

        Args:
            values: of :attr:`layers`, as :class:`fastadv.detection.LayerTap` gives them: pooled, or maps.
            own: as :class:`fastadv.detection.Trajectory` takes it: the classes that the images claim to show, or those
                that the model's head chooses, ``detector.trajectory.own_of(model.head(tapped.features).argmax(1))``.

        Returns:
            ``(N,)`` float32, logits: higher for what looks adversarial.

        Raises:
            TypeError, ValueError: the values or the classes do not fit.
        """
        scores: Tensor = self.network(self.trajectory(values, own))
        return scores

    def prepared(self) -> ops.PreparedScore | None:
        """:meth:`score` of maps as one compiled call without derivative, for a detector on the CPU; None elsewhere.

        None too where the compiled module is missing and where the trajectory names another backend.
        """
        representatives, backend = self.trajectory.representatives, self.trajectory.backend
        device = representatives.vectors[0].device
        operation = "pooled_relative_distances" if self.trajectory.relative else "pooled_centroid_distances"
        if device.type != "cpu" or backends.resolve(operation, device, backend) != "cpu":
            return None
        network = self.network
        hidden, last = network.parts()
        return ops.PreparedScore(
            centroids=representatives.vectors,
            metric=self.trajectory.metric,
            reading=self.trajectory.reading,
            mean=network.mean,
            scale=network.scale,
            hidden=hidden,
            last=last,
        )

    def with_representatives(self, representatives: Representatives) -> Detector:
        """The same on other classes, of any number: other people's, or :meth:`Representatives.joined` ones.

        The thresholds are kept. They were measured with the former classes: calibrate on images of the new ones.

        Raises:
            ValueError: the reading is ``raw``, whose network knows its classes by their places, or the representatives
                are of another kind, model, layers or widths.
        """
        if not self.trajectory.relative:
            raise ArgumentError("reading: expected 'relative' for other classes, got 'raw'; fit a relative detector")
        check_alike("representatives", representatives, self.trajectory.representatives)
        return replace(self, trajectory=replace(self.trajectory, representatives=representatives))

    def calibrated(
        self,
        natural: Tensor,
        adversarial: Tensor | None = None,
        *,
        rates: tuple[float, ...] | None = None,
        calibrated_on: Mapping[str, str] | None = None,
    ) -> Detector:
        """The same with thresholds (:func:`fastadv.detection.calibrate`) from scores of images it was not fitted on.

        Natural ones are enough: scores of one's own faces set the false-alarm rate on such faces.
        """
        return replace(self, thresholds=calibrate(natural, adversarial, rates=rates, calibrated_on=calibrated_on))

    def to(self, device: torch.device | str) -> Detector:
        """The same on another device; the network is moved, not copied."""
        return replace(self, trajectory=self.trajectory.to(device), network=self.network.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one safetensors file, whole or not at all.

        Raises:
            OSError: with the file's name.
        """
        about = {
            **self.trajectory.representatives.about(),
            "metric": self.trajectory.metric,
            "reading": self.trajectory.reading,
            **({} if self.trajectory.head is None else {"head": list(self.trajectory.head)}),
            "architecture": self.network.architecture.kind,
            "hidden": self.network.architecture.hidden,
            "dropout": self.network.architecture.dropout,
            "detector_provenance": dict(self.provenance),
            **describe(self.thresholds),
        }
        tensors = {
            **self.trajectory.representatives.tensors(),
            **_weights(self.network),
            **calibration_tensors(self.thresholds),
        }
        tensor_file.write(path, kind=_FILE, tensors=tensors, about=about)


def load_detector(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Detector:
    """Read what :meth:`Detector.save` wrote. A file of an earlier version, without a reading, is ``raw``.

    Args:
        path: the file.
        device: where the detector goes.

    Raises:
        DetectionFileError: the file is missing, damaged, of another kind, or holds what cannot be.
        ValueError: the device is not there.
    """
    where = open_device(device)
    file = tensor_file.read(path, kind=_FILE)
    representatives = from_file(file)
    reading = file.text("reading", known=READINGS) if "reading" in file.about else "raw"
    metric = file.text("metric", known=tuple(DISTANCES))
    try:
        head = file.texts("head") if "head" in file.about else None
        trajectory = Trajectory(representatives=representatives, metric=metric, reading=reading, head=head)
        architecture = Architecture(
            kind=file.text("architecture", known=KINDS),
            layers=trajectory.shape[0],
            width=trajectory.shape[1],
            hidden=file.integer("hidden"),
            dropout=file.number("dropout"),
        )
    except DetectionFileError:
        raise
    except ValueError as error:
        raise DetectionFileError(f"{file.path}: {error}") from error
    with torch.device("meta"):  # sizes come from the file: no memory before its tensors are known to have them
        network = Network(architecture)
    wanted = _weights(network)
    state = {
        name.removeprefix("network."): file.tensor(name, tuple(value.shape)).clone() for name, value in wanted.items()
    }
    if not bool((state["scale"] > 0).all()):
        raise file.wrong("network.scale", float(state["scale"].min()), "positive numbers")
    thresholds = thresholds_of(file)
    file.only({*representatives.tensors(), *wanted, *calibration_tensors(thresholds)})
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    made = Detector(
        trajectory=trajectory,
        network=network,
        thresholds=thresholds,
        provenance=file.pairs("detector_provenance"),
    )
    return made.to(where)


def describe(thresholds: Thresholds | None) -> dict[str, object]:
    """What a file says of thresholds."""
    return {} if thresholds is None else {"calibrated": True, **thresholds.described()}


def calibration_tensors(thresholds: Thresholds | None) -> dict[str, Tensor]:
    """What a file holds of thresholds: the calibration set, by name."""
    return {} if thresholds is None or thresholds.scores is None else {_SCORES: thresholds.scores}


def thresholds_of(file: TensorFile) -> Thresholds | None:
    """The thresholds in an opened file, or None.

    Raises:
        DetectionFileError: what it says of them cannot be.
    """
    if "calibrated" not in file.about:
        return None
    rates, lines = file.numbers("false_alarm_rates"), file.numbers("false_alarm")
    if len(rates) != len(lines) or not all(0 <= rate <= 1 for rate in rates):
        raise file.wrong("false_alarm_rates", list(rates), f"{len(lines)} rates in [0, 1], as many as false_alarm has")
    natural = file.integer("natural")
    alone = file.about.get("adversarial") == 0
    if alone and not rates:
        raise file.wrong("false_alarm_rates", [], "one or more where there are no adversarial images")
    scores = file.tensor(_SCORES, (natural,)) if _SCORES in file.tensors else None
    if scores is not None and not bool((scores[1:] >= scores[:-1]).all()):
        raise file.wrong(_SCORES, "others", "scores in ascending order")
    return Thresholds(
        equal_error=None if alone else file.number("equal_error"),
        equal_error_rate=None if alone else file.number("equal_error_rate"),
        false_alarm_rates=rates,
        false_alarm=lines,
        natural=natural,
        adversarial=0 if alone else file.integer("adversarial"),
        scores=scores,
        calibrated_on=file.pairs("calibrated_on") if "calibrated_on" in file.about else {},
    )


def _weights(network: Network) -> dict[str, Tensor]:
    return {f"network.{name}": value for name, value in network.state_dict().items()}
