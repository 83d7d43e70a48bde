"""The cascade: proposals of P-Net on a pyramid, refined by R-Net, finished with landmarks by O-Net."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise, starmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastadv.core.brief import brief
from fastadv.core.detections import Detections
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_int, check_range
from fastadv.models.batching import fixed_batches
from fastadv.models.devices import open_device
from fastadv.models.identity import state_hash
from fastadv.models.modes import plain_modes
from fastadv.models.mtcnn.areas import SummedAreas
from fastadv.models.mtcnn.networks import pnet_cells
from fastadv.models.mtcnn.suppression import nms, nms_on_grid
from fastadv.models.mtcnn.weights import load_cascade

_WINDOW, _STRIDE = 12, 2  # of P-Net
_AT_SCALE, _AT_SCALES, _REFINED, _FINISHED = 0.5, 0.7, 0.7, 0.7  # overlaps that are too much, after each step
_TOGETHER = 2**23  # pixels of the pictures in one call of the cascade; a larger picture is alone
_STRIP = 2**18  # pixels of a level that P-Net sees at a time
_WORTHWHILE = {"cpu": 2**13, "cuda": 2**20}  # pixels from which a call of P-Net is worth its overhead
_AT_ONCE = 16  # pictures in a call at most: a smaller number is filled up
_CHUNKS = {24: 64, 48: 16}  # windows that R- and O-Net see at a time


class MTCNN:
    """Faces and landmarks by MTCNN (Zhang et al. 2016), with the arithmetic and the settings of facenet-pytorch.

    Pictures of any sizes go through the cascade together: P-Net scores each level of the pyramid, and R- and O-Net see
    the windows of all pictures in one pass. What is found in a picture does not depend on the others, to the last bit
    on a CPU: the networks are given batches of one fixed size. Memory is bounded by the largest picture (about 15 bytes
    a pixel), not by their number.

    Attributes:
        device: Where it computes.
        identity: The weights' hash and the settings, as plain values.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        least_face: int = 20,
        factor: float = 0.709,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        random_weights_seed: int | None = None,
    ) -> None:
        """Loads the networks.

        Args:
            weights: A safetensors or torch file with the tensors of all three networks (prefixes ``pnet.``, ``rnet.``,
                ``onet.``); None takes those of an installed facenet-pytorch, of which nothing is imported.
            device: Where to compute.
            least_face: Side of the smallest face that is looked for, in pixels, at least 12.
            factor: From one level of the pyramid to the next, in [0.1, 0.95].
            thresholds: Scores from which P-, R- and O-Net keep a window, in [0, 1].
            random_weights_seed: In place of weights: random ones, for tests.

        Raises:
            ValueError: A setting is out of range, there are no weights, or the device is not there.
            CheckpointError: The weights are missing, damaged, or not of MTCNN.
        """
        check_int("least_face", least_face, _WINDOW, 2**16)
        check_range("factor", factor, 0.1, 0.95)
        if not isinstance(thresholds, Sequence) or len(thresholds) != 3:
            raise ArgumentError(f"thresholds: expected one for each of the 3 networks, got {brief(thresholds)}")
        for threshold in thresholds:
            check_range("thresholds", threshold, 0, 1)
        self.device = open_device(device)
        self._cascade = load_cascade(weights, random_weights_seed=random_weights_seed).to(self.device)
        self.identity = {
            "name": "mtcnn",
            "weights": state_hash(self._cascade),
            "least_face": least_face,
            "factor": factor,
            "thresholds": list(thresholds),
        }
        self._scale, self._factor, self._thresholds = _WINDOW / least_face, factor, thresholds

    def __call__(self, images: Sequence[NDArray[np.uint8]], /) -> list[Detections]:
        """The faces of each picture, the best score first.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.

        Raises:
            ValueError: An image of another shape or type, or without pixels.
        """
        for k, image in enumerate(images):
            if (
                not isinstance(image, np.ndarray)
                or image.dtype != np.uint8
                or image.shape[2:] != (3,)
                or not image.size
            ):
                raise ArgumentError(f"images[{k}]: expected (H, W, 3) uint8 with pixels, got {brief(image)}")
        found: dict[int, Detections] = {}
        with plain_modes(self.device), torch.no_grad():
            for places in _together([image.shape[:2] for image in images]):
                found.update(zip(places, self._detect([images[k] for k in places]), strict=True))
        return [found[k] for k in range(len(images))]

    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """The faces of pictures that fit into the memory together; those of one shape follow each other."""
        areas = SummedAreas(images, self.device)
        boxes, owner = self._refined(areas, *self._proposed(areas))
        boxes, owner, points, scores = self._finished(areas, boxes, owner)
        boxes = boxes - boxes.new_tensor([1, 1, 0, 0])  # the cascade counts pixels from 1, the last one included
        parts = owner.bincount(minlength=len(images)).cumsum(0).tolist()[:-1]
        columns = (np.split(value.double().cpu().numpy(), parts) for value in (boxes, points, scores))
        return [Detections(boxes=b, landmarks=p, scores=s) for b, p, s in zip(*columns, strict=True)]

    def _proposed(self, areas: SummedAreas) -> tuple[Tensor, Tensor]:
        """Squares that P-Net takes for faces, (N, 4), and which picture each is of."""
        rows, owners = [areas.sizes.new_zeros((0, 9)).float()], [areas.sizes.new_zeros(0)]
        overlapping = False
        shapes = list(enumerate(map(tuple, areas.sizes.tolist())))
        for (width, height), alike in groupby(shapes, key=lambda item: item[1]):
            pictures = torch.tensor([place for place, _ in alike], device=self.device)
            scales = self._scales(height, width)
            overlapping |= any(starmap(_may_overlap, pairwise(scales)))
            for scale in scales:
                found, owner = self._at_scale(areas, pictures, height, width, scale)
                rows.append(found)
                owners.append(owner)
        found, owner = torch.cat(rows), torch.cat(owners)
        if overlapping:
            stays = nms(found[:, :4], found[:, 4], owner, _AT_SCALES)
            found, owner = found[stays], owner[stays]
        found, owner = found[owner.argsort(stable=True)], owner.sort().values  # windows near each other in memory
        return _squares(_moved(found[:, :4], found[:, 5:], 0)), owner

    def _scales(self, height: int, width: int) -> list[float]:
        """From the picture to each level whose smaller side is no smaller than P-Net's window."""
        scales, scale = [], self._scale
        least = min(height, width) * scale
        while least >= _WINDOW:
            scales.append(scale)
            scale, least = scale * self._factor, least * self._factor
        return scales

    def _at_scale(
        self, areas: SummedAreas, pictures: Tensor, height: int, width: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Box, score and offsets of the windows that P-Net keeps at one scale, (N, 9), and the picture of each."""
        size = int(height * scale + 1), int(width * scale + 1)
        rows, columns = map(pnet_cells, size)
        whole = torch.tensor([[0, 0, width, height]], device=self.device)
        at_once = min(-(-_WORTHWHILE[self.device.type] // (size[0] * size[1])), _AT_ONCE)
        step = max(1, _STRIP // (_STRIDE * size[1]))
        cells, values = [], []
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            # of the rows that these cells see, where the last cells may lack one
            strip = range(_STRIDE * begin, min(_STRIDE * end + _WINDOW - _STRIDE, size[0]))

            def scored(chosen: Tensor, strip: range = strip) -> Tensor:
                return self._cascade.pnet(areas.resampled(chosen, whole.expand(len(chosen), 4), size, strip))

            maps = fixed_batches(scored, pictures, at_once)
            kept = (maps[:, 0] >= self._thresholds[0]).nonzero()
            values.append(maps[kept[:, 0], :, kept[:, 1], kept[:, 2]])
            cells.append(kept + kept.new_tensor([0, begin, 0]))
        cell, value = torch.cat(cells), torch.cat(values)
        corner = _STRIDE * cell[:, [2, 1]].float()
        boxes = torch.cat((((corner + 1) / scale).floor(), ((corner + _WINDOW) / scale).floor()), 1)
        stays = nms_on_grid(cell, boxes, value[:, 0], (len(pictures), rows, columns), _AT_SCALE)
        return torch.cat((boxes, value), 1)[stays], pictures[cell[stays, 0]]

    def _refined(self, areas: SummedAreas, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Squares that R-Net takes for faces, moved by its offsets."""
        boxes, owner, found = self._passed(self._cascade.rnet, areas, boxes, owner, 24, self._thresholds[1])
        stays = nms(boxes, found[:, 0], owner, _REFINED)
        return _squares(_moved(boxes[stays], found[stays, 1:5], 1)), owner[stays]

    def _finished(self, areas: SummedAreas, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, pictures, landmarks and scores of what O-Net takes for faces."""
        boxes, owner, found = self._passed(self._cascade.onet, areas, boxes, owner, 48, self._thresholds[2])
        size = boxes[:, 2:] - boxes[:, :2] + 1
        points = size[:, None] * found[:, 5:].view(-1, 2, 5).transpose(1, 2) + boxes[:, None, :2] - 1
        boxes = _moved(boxes, found[:, 1:5], 1)
        stays = nms(boxes + boxes.new_tensor([0, 0, 1, 1]), found[:, 0], owner, _FINISHED, of_smaller=True)
        return boxes[stays], owner[stays], points[stays], found[stays, 0]

    def _passed(
        self, network: nn.Module, areas: SummedAreas, boxes: Tensor, owner: Tensor, side: int, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes whose windows a network scores above a threshold, their pictures, and what it says of them."""
        corners = boxes.trunc().long()
        low, high = corners[:, :2].clamp(min=1) - 1, torch.minimum(corners[:, 2:], areas.sizes[owner])
        inside = (high > low).all(1)
        boxes, owner = boxes[inside], owner[inside]
        if not len(boxes):
            return boxes, owner, boxes.new_zeros((0, 15))
        windows = torch.cat((owner[:, None], low[inside], high[inside]), 1)
        size = (side, side)
        found = fixed_batches(lambda w: network(areas.resampled(w[:, 0], w[:, 1:], size)), windows, _CHUNKS[side])
        passed = found[:, 0] > threshold
        return boxes[passed], owner[passed], found[passed]


def _together(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """The places of pictures that are detected together: those of one shape follow each other, memory is bounded."""
    chosen: list[int] = []
    pixels = 0
    for place in sorted(range(len(shapes)), key=lambda k: shapes[k]):
        more = shapes[place][0] * shapes[place][1]
        if chosen and pixels + more > _TOGETHER:
            yield chosen
            chosen, pixels = [], 0
        chosen.append(place)
        pixels += more
    if chosen:
        yield chosen


def _may_overlap(scale: float, next_scale: float) -> bool:
    """Whether boxes of two levels may overlap by more than is allowed between levels.

    A box is 11 / scale wide but for 1, so that their IoU is at most the square of the ratio; within a level it is 0.5.
    """
    side = _WINDOW - 1
    return ((side / scale + 1) / (side / next_scale - 1)) ** 2 > _AT_SCALES


def _moved(boxes: Tensor, offsets: Tensor, more: int) -> Tensor:
    """Boxes moved by offsets in units of their sides, which count `more` than the difference of the corners."""
    size = boxes[:, 2:] - boxes[:, :2] + more
    return boxes + offsets * size.repeat(1, 2)


def _squares(boxes: Tensor) -> Tensor:
    """Squares around the boxes' centres with the longer side."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.amax(1, keepdim=True)
    corner = boxes[:, :2] + size * 0.5 - side * 0.5
    return torch.cat((corner, corner + side), 1)
