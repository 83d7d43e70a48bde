"""One call from images to a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.detection.detectors import Detector
from fastadv.detection.examples import Examples
from fastadv.detection.fitting import FitConfig, fit_network
from fastadv.detection.networks import side_by_side
from fastadv.detection.representatives import centroids
from fastadv.detection.taps import EMBEDDING, LayerTap
from fastadv.detection.trajectory import Trajectory
from fastadv.models import FaceModel
from fastadv.models.checks import check_images

_BATCH = 32
_FOLDS = 4
_LEAST = 4  # images of a kind: some to fit, some to draw the line


def fit(
    model: FaceModel,
    natural: Tensor,
    adversarial: Tensor | Mapping[str, Tensor],
    *,
    labels: Tensor | None = None,
    layers: Sequence[str] | None = None,
    metric: str | None = None,
    reading: str = "relative",
    config: FitConfig | None = None,
    held: float = 0.25,
) -> Detector:
    """Fit a detector of adversarial images, and calibrate it on images that it was not fitted on. ::

        made = fa.attack("pgd", model, images, labels)
        detector = fa.detection.fit(model, images, made.images, labels=labels)
        detector.save("detector.safetensors")
        verdicts = fa.Guard(model=model, detector=detector)(images)

    A share ``held`` of the images is drawn by ``config.seed`` and kept apart: the network's best epoch and the
    thresholds come from them. Image i of an attack belongs to natural image i where there are as many, and is then
    kept apart with it. The classes' centroids come from the other natural images. With the reading ``relative`` each of
    those, and what was made of it, is read by centroids of the images outside its fold (four folds): an image is
    nearer to a mean that it is part of. A person who is none of the classes looks less natural to such a detector:
    :func:`fastadv.detection.enrol` adds people.

    Args:
        model: In evaluation mode; its layers are read.
        natural: ``(N, C, H, W)`` float in [0, 1]; two images or more of a person, for the reading ``relative``.
        adversarial: Images like these, or such images by the names of their attacks.
        labels: ``(N,)`` int64, the classes of the natural images; None takes those that the model's class head says.
            Where the head agrees with most of them, its choice is the own class of the reading ``relative``.
        layers: Names of submodules, shallow to deep, last ``"embedding"`` for the embedding; None for ``model.layers``,
            and with the reading ``"relative"`` the embedding.
        metric: ``"l2"``, ``"cosine"``, or ``"l2+cosine"`` for the mean of the scores of two networks, one for each
            distance; None for ``"l2+cosine"`` with the reading ``"relative"``, ``"l2"`` with ``"raw"``.
        reading: ``"relative"`` or ``"raw"`` (the paper's), see :class:`fastadv.detection.Trajectory`; ``"relative"``
            takes images of two classes or more.
        config: How a network is fitted; None for ``FitConfig(kind="mlp")``. ``FitConfig()`` alone is an LSTM.
        held: In (0, 1).

    Raises:
        TypeError, ValueError: An argument is of the wrong type, shape or value; the model names no layers and none are
            given, or has no class head and no labels are given; there are fewer than four images of a kind, or the
            adversarial images are the natural ones.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    if not isinstance(model, FaceModel):
        raise ArgumentTypeError(f"model: expected a FaceModel, got {type(model).__name__}; see fastadv.wrap")
    named = dict(adversarial) if isinstance(adversarial, Mapping) else {"adversarial": adversarial}
    kinds = {"natural": natural, **named}
    for name, images in kinds.items():
        check_images(name, images)
        if len(images) < _LEAST:
            raise ArgumentError(f"{name}: expected at least {_LEAST} images, got {len(images)}")
    for name, images in named.items():
        if images.shape == natural.shape and torch.equal(images, natural):
            raise ArgumentError(f"{name}: expected images that an attack has changed, got the natural ones")
    if not 0 < held < 1:
        raise ArgumentError(f"held: expected a share in (0, 1), got {held}")
    names = tuple(model.layers if layers is None else layers)
    if not names:
        raise ArgumentError(f"layers: expected names of submodules, got none, and {model.name!r} names none itself")
    if layers is None and reading == "relative":
        names = (*names, EMBEDDING)
    config = (config or FitConfig(kind="mlp")).for_reading(reading)
    metric = metric or ("l2+cosine" if reading == "relative" else "l2")
    tap = LayerTap(model=model, layers=names)
    tapped = {name: _values(tap, images) for name, images in kinds.items()}
    values = {name: each for name, (each, _) in tapped.items()}
    logits = {name: each for name, (_, each) in tapped.items()}
    known = _classes(model, natural, labels, logits["natural"])
    head = _head(known, logits["natural"]) if reading == "relative" else None
    apart = {name: _apart(len(images), held, config.seed) for name, images in kinds.items()}
    kept = ~apart["natural"]

    def made(rows: Tensor) -> Trajectory:
        classes, places = known[rows].unique(return_inverse=True)
        return Trajectory(
            representatives=centroids(
                [([value[rows] for value in values["natural"]], places)],
                layers=names,
                classes=tuple(str(int(k)) for k in classes),
                model=model.name,
            ),
            metric=metric,
            reading=reading,
            head=head,
        )

    trajectory = made(kept)
    ways = {name: torch.empty(len(each[0]), *trajectory.shape) for name, each in values.items()}
    # An image is nearer to a mean that it is part of: a relative reading would take that for being natural.
    folds = _FOLDS if reading == "relative" else 1
    parted = {name: _folds(rows, folds, config.seed) for name, rows in apart.items()}
    for fold in range(-1, folds):
        embed = trajectory if fold < 0 or folds == 1 else made(kept & (parted["natural"] != fold))
        for name, each in values.items():
            rows, said = parted[name] == fold, logits[name]
            own = None if said is None else embed.own_of(said[rows].argmax(1))
            ways[name][rows] = embed([value[rows] for value in each], own)
    parts = [_examples(ways, {name: rows == wanted for name, rows in apart.items()}) for wanted in (False, True)]
    by_metric = zip(*(part.parts(len(trajectory.metrics)) for part in parts), strict=True)
    networks = [fit_network(config, seen, held=left).network for seen, left in by_metric]
    network = networks[0] if len(networks) == 1 else side_by_side(*([each] for each in networks))
    facts = {"attacks": ", ".join(named)}
    detector = Detector(trajectory=trajectory, network=network, provenance=facts)
    with torch.no_grad():
        scores = detector.network(parts[1].embeddings)
    return detector.calibrated(scores[parts[1].groups == 0], scores[parts[1].groups > 0])


def _values(tap: LayerTap, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """The layers' values, and the logits where the model has a head."""
    parts: list[list[Tensor]] = []
    head = tap.model.head
    with torch.no_grad():
        for part in images.split(_BATCH):
            tapped = tap(part.to(tap.model.device, torch.float32))
            parts.append([*tapped.values, *([] if head is None else [head(tapped.features)])])
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return columns[: len(tap.names)], None if head is None else columns[-1]


def _classes(model: FaceModel, natural: Tensor, labels: Tensor | None, logits: Tensor | None) -> Tensor:
    if labels is None:
        if logits is None:
            raise ArgumentError(
                f"labels: expected the classes of the images, since {model.name!r} has no class head, got None"
            )
        return logits.argmax(1)
    if labels.shape != (len(natural),) or labels.is_floating_point():
        raise ArgumentError(f"labels: expected ({len(natural)},) integers, got {tuple(labels.shape)} {labels.dtype}")
    return labels.cpu().long()


def _head(known: Tensor, logits: Tensor | None) -> tuple[str, ...] | None:
    """Who each logit is, where the head speaks of these classes: it agrees with most labels."""
    if logits is None or float((logits.argmax(1) == known).double().mean()) <= 0.5:
        return None
    return tuple(str(k) for k in range(logits.shape[1]))


def _apart(count: int, share: float, seed: int) -> Tensor:
    """Which of so many images are kept apart: the same for the same count."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = torch.zeros(count, dtype=torch.bool)
    rows[order[: min(count - 1, max(1, round(share * count)))]] = True
    return rows


def _folds(apart: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each image, from 0; -1 of those kept apart."""
    order = torch.randperm(len(apart), generator=torch.Generator().manual_seed(seed))
    numbers = torch.empty(len(apart), dtype=torch.int64)
    numbers[order] = torch.arange(len(apart)) % folds
    return torch.where(apart, -1, numbers)


def _examples(ways: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Examples:
    """The chosen rows of each kind, the natural ones first."""
    chosen = [way[rows[name]] for name, way in ways.items()]
    groups = torch.cat([torch.full((len(each),), k) for k, each in enumerate(chosen)])
    return Examples(embeddings=torch.cat(chosen), groups=groups, attacks=tuple(ways)[1:])
