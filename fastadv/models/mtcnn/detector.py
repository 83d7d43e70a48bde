"""The cascade: proposals of P-Net on a pyramid, refined by R-Net, finished with landmarks by O-Net."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.detections import Detections
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_int, check_range
from fastadv.models.batching import fixed_batches
from fastadv.models.devices import open_device
from fastadv.models.identity import state_hash
from fastadv.models.modes import plain_modes
from fastadv.models.mtcnn.areas import SummedAreas
from fastadv.models.mtcnn.pyramid import WINDOW, Level, boxes_of, levels_of, may_overlap
from fastadv.models.mtcnn.suppression import nms, nms_on_grid
from fastadv.models.mtcnn.weights import load_cascade
from fastadv.models.one_threaded import OneThreaded
from fastadv.ops.conv_prelu import ConvPreluNetwork

_AT_SCALE, _AT_SCALES, _REFINED, _FINISHED = 0.5, 0.7, 0.7, 0.7  # overlaps that are too much, after each step
_TOGETHER = 2**23  # pixels of the pictures in one call of the cascade; a larger picture is alone
_WORTHWHILE = {"cpu": 2**14, "cuda": 2**20}  # pixels from which a call of P-Net is worth its overhead
_WORTHWHILE_COMPILED = 2**16  # where a smaller number of pictures is not filled up
_AT_ONCE = 16  # pictures in a call at most
_CHUNKS = {24: 64, 48: 16}  # windows that R- and O-Net see at a time


class MTCNN:
    """Faces and landmarks by MTCNN (Zhang et al. 2016), with the arithmetic and the settings of facenet-pytorch.

    Pictures of any sizes go through the cascade together: P-Net scores each level of the pyramid, and R- and O-Net see
    the windows of all pictures in one pass. What is found in a picture does not depend on the others, to the last bit
    on a CPU: the networks are given batches of one fixed size, and there, side by side, one thread each. Memory is
    bounded by the largest picture (about 20 bytes a pixel), not by their number.

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
        refine: bool = False,
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
            refine: Whether the landmarks are those of a second pass of O-Net, in the square around the box that the
                first pass found, by the pixels that the window really covers. The first pass sees a box of R-Net's, and
                its landmarks, those of facenet-pytorch, are given in the box before its corners were rounded down to
                whole pixels: half a pixel too far right and down on average. Boxes and scores stay the same.
            random_weights_seed: In place of weights: random ones, for tests.

        Raises:
            ValueError: A setting is out of range, there are no weights, or the device is not there.
            CheckpointError: The weights are missing, damaged, or not of MTCNN.
        """
        check_int("least_face", least_face, WINDOW, 2**16)
        check_range("factor", factor, 0.1, 0.95)
        if not isinstance(thresholds, Sequence) or len(thresholds) != 3:
            raise ArgumentError(f"thresholds: expected one for each of the 3 networks, got {brief(thresholds)}")
        for threshold in thresholds:
            check_range("thresholds", threshold, 0, 1)
        self.device = open_device(device)
        cascade = load_cascade(weights, random_weights_seed=random_weights_seed).to(self.device)
        self._pnet, self._rnet, self._onet = (part.network() for part in (cascade.pnet, cascade.rnet, cascade.onet))
        self.identity = {
            "name": "mtcnn",
            "weights": state_hash(cascade),
            "least_face": least_face,
            "factor": factor,
            "thresholds": list(thresholds),
            **({"refine": True} if refine else {}),
        }
        self._threads = OneThreaded(torch.get_num_threads() if self.device.type == "cpu" else 1)
        self._worthwhile = _WORTHWHILE_COMPILED if self._pnet.compiled else _WORTHWHILE[self.device.type]
        self._scale, self._factor = WINDOW / least_face, factor
        self._least = float(torch.tensor(thresholds[0], dtype=torch.float64).logit())  # evidence for P-Net
        self._thresholds = thresholds
        self._refine = refine

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
        with plain_modes(self.device):
            for places in _together([image.shape[:2] for image in images]):
                made = self._threads.call(self._detect, [images[k] for k in places])
                found.update(zip(places, made, strict=True))
        return [found[k] for k in range(len(images))]

    @torch.no_grad()
    def _detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """The faces of pictures that fit into the memory together; those of one shape follow each other."""
        areas = SummedAreas(images, self.device, each=self._threads.map)
        boxes, owner = self._refined(areas, *self._proposed(areas))
        boxes, owner, points, scores = self._finished(areas, boxes, owner)
        if self._refine:
            points = self._refined_points(areas, boxes, owner, points)
        boxes = boxes - boxes.new_tensor([1, 1, 0, 0])  # the cascade counts pixels from 1, the last one included
        parts = owner.bincount(minlength=len(images)).cumsum(0).tolist()[:-1]
        columns = (np.split(value.double().cpu().numpy(), parts) for value in (boxes, points, scores))
        return [Detections(boxes=b, landmarks=p, scores=s) for b, p, s in zip(*columns, strict=True)]

    def _proposed(self, areas: SummedAreas) -> tuple[Tensor, Tensor]:
        """Squares that P-Net takes for faces, (N, 4), and which picture each is of."""
        none = areas.sizes.new_zeros(0)
        kept = [(none, none.new_zeros((0, 4)).float(), none.new_zeros((0, 5)).float())]
        overlapping = False
        shapes = list(enumerate(map(tuple, areas.sizes.tolist())))
        for (width, height), alike in groupby(shapes, key=lambda item: item[1]):
            pictures = torch.tensor([place for place, _ in alike], device=self.device)
            levels = levels_of(height, width, scale=self._scale, factor=self._factor)
            overlapping |= may_overlap(levels, _AT_SCALES)
            if not levels:
                continue
            cells, level, found = self._scored(areas, pictures, levels)
            boxes = boxes_of(cells[:, 1:], torch.tensor([each.scale for each in levels], device=self.device)[level])
            grids = (cells[:, :1] - pictures[0]) * len(levels) + level[:, None]
            sides = [each.cells for each in levels] * len(pictures)
            stays = nms_on_grid(torch.cat((grids, cells[:, 1:]), 1), boxes, found[:, 0], sides, _AT_SCALE)
            kept.append((cells[stays, 0], boxes[stays], found[stays]))
        owner, boxes, found = map(torch.cat, zip(*kept, strict=True))
        # windows of a picture behind each other, where they are near in memory
        order = nms(boxes, found[:, 0], owner, _AT_SCALES) if overlapping else owner.argsort(stable=True)
        return _squares(_moved(boxes[order], found[order, 1:], 0)), owner[order]

    def _scored(self, areas: SummedAreas, pictures: Tensor, levels: Sequence[Level]) -> tuple[Tensor, Tensor, Tensor]:
        """What P-Net keeps of pictures: picture, row and column of windows, (N, 3); their levels, (N,); its results."""
        tasks = [
            (k, strip, some)
            for k, level in enumerate(levels)
            for strip in level.strips
            for some in pictures.split(self._at_once(level))
        ]
        kept = self._threads.map(lambda task: self._kept(areas, levels[task[0]], *task[1:]), tasks)
        counts = torch.tensor([len(cells) for cells, _ in kept], device=self.device)
        level = torch.tensor([k for k, *_ in tasks], device=self.device).repeat_interleave(counts)
        cells, found = map(torch.cat, zip(*kept, strict=True))
        return cells, level, found

    def _at_once(self, level: Level) -> int:
        """How many pictures' levels P-Net sees at a time: by their size alone, not by how many there are."""
        height, width = level.size
        return min(-(-self._worthwhile // (height * width)), _AT_ONCE)

    def _kept(self, areas: SummedAreas, level: Level, strip: range, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """What P-Net keeps of a strip of a level of some pictures: windows and results."""
        whole = pictures.new_tensor([[0, 0, level.width, level.height]]).expand(len(pictures), 4)
        seen = areas.resampled(areas.windows(pictures, whole), level.size, level.seen(strip))
        found = _applied(self._pnet, seen, self._at_once(level))
        picture, row, column = (found[:, 0] >= self._least).nonzero().T
        cells = torch.stack((pictures[picture], row + strip.start, column), 1)
        return cells, _with_probabilities(found[picture, :, row, column])

    def _refined(self, areas: SummedAreas, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Squares that R-Net takes for faces, moved by its offsets."""
        boxes, owner, found = self._passed(self._rnet, areas, boxes, owner, 24, self._thresholds[1])
        stays = nms(boxes, found[:, 0], owner, _REFINED)
        return _squares(_moved(boxes[stays], found[stays, 1:5], 1)), owner[stays]

    def _finished(self, areas: SummedAreas, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, pictures, landmarks and scores of what O-Net takes for faces."""
        boxes, owner, found = self._passed(self._onet, areas, boxes, owner, 48, self._thresholds[2])
        size = boxes[:, 2:] - boxes[:, :2] + 1
        points = size[:, None] * _pairs(found[:, 5:]) + boxes[:, None, :2] - 1
        boxes = _moved(boxes, found[:, 1:5], 1)
        stays = nms(boxes + boxes.new_tensor([0, 0, 1, 1]), found[:, 0], owner, _FINISHED, of_smaller=True)
        return boxes[stays], owner[stays], points[stays], found[stays, 0]

    def _refined_points(self, areas: SummedAreas, boxes: Tensor, owner: Tensor, points: Tensor) -> Tensor:
        """Landmarks of a second pass of O-Net in the squares around boxes; unchanged if a square is off the picture."""
        windows, inside = _windows(areas, _squares(boxes), owner)
        if inside.any():
            found = self._outputs(self._onet, areas, windows, 48)[:, 5:]
            corner, size = windows[:, None, 2:4], (windows[:, 4:] - windows[:, 2:4])[:, None]
            points[inside] = corner + size * _pairs(found)
        return points

    def _passed(
        self, network: ConvPreluNetwork, areas: SummedAreas, boxes: Tensor, owner: Tensor, side: int, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes whose windows a network scores above a threshold, their pictures, and its results."""
        windows, inside = _windows(areas, boxes, owner)
        boxes, owner = boxes[inside], owner[inside]
        if not len(boxes):
            return boxes, owner, boxes.new_zeros((0, 15))
        found = self._outputs(network, areas, windows, side)
        passed = found[:, 0] > threshold
        return boxes[passed], owner[passed], found[passed]

    def _outputs(self, network: ConvPreluNetwork, areas: SummedAreas, windows: Tensor, side: int) -> Tensor:
        """The results of a network for windows of pictures, resampled to this side; first the probability of a face."""

        def results(some: Tensor) -> Tensor:
            return _applied(network, areas.resampled(some, (side, side)), _CHUNKS[side]).flatten(1)

        size = min(_CHUNKS[side], -(-len(windows) // self._threads.count)) if network.compiled else _CHUNKS[side]
        return _with_probabilities(torch.cat(self._threads.map(results, windows.split(size))))


def _applied(network: ConvPreluNetwork, x: Tensor, size: int) -> Tensor:
    """A network's results, whose bits do not depend on the size of the batch: else `size` images go in at a time."""
    return network(x) if network.compiled else fixed_batches(network, x, size)


def _with_probabilities(found: Tensor) -> Tensor:
    """Results whose first number is the probability of a face, no longer the logarithm of its odds."""
    found[:, 0].sigmoid_()
    return found


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


def _pairs(found: Tensor) -> Tensor:
    """O-Net's x1 to x5, y1 to y5, (N, 10), as points, (N, 5, 2)."""
    return found.view(-1, 2, 5).transpose(1, 2)


def _windows(areas: SummedAreas, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that boxes cover, as `SummedAreas.windows`, and which boxes cover any."""
    corners = boxes.trunc().long()
    low, high = corners[:, :2].clamp(min=1) - 1, torch.minimum(corners[:, 2:], areas.sizes[owner])
    inside = (high > low).all(1)
    return areas.windows(owner[inside], torch.cat((low, high), 1)[inside]), inside
