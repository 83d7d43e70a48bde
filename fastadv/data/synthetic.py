"""Synthetic faces: a data set that needs no data, each picture a function of its key."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, UnknownNameError
from fastadv.core.progress import Progress, silent
from fastadv.data.alignment import Points, Size, shape_of
from fastadv.data.dealt_pairs import deal_pairs
from fastadv.data.face import Face, face_id
from fastadv.data.faces import FaceSource
from fastadv.data.hashes import KnownHashes
from fastadv.data.images import to_uint8, write_png
from fastadv.data.pairs import Pair
from fastadv.data.stream import Stream
from fastadv.data.synthetic_render import render

_BLOCK = 16
_IDENTITIES = 1_000_000
_IMAGES = 10_000
_SIZES = (32, 512)


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticBatch:
    """Rendered faces.

    Attributes:
        images: (N, 3, H, W) float32 RGB in [0, 1], on the 8-bit grid.
        landmarks: (N, 5, 2) float32, as (x, y) in pixel-edge coordinates of the image: left eye, right eye, nose,
            left and right mouth corner; the viewer's left first.
        identities: (N,) int64.
    """

    images: Tensor
    landmarks: Tensor
    identities: Tensor


def render_faces(
    identities: Sequence[int], indices: Sequence[int], *, seed: int = 0, size: Size = 112
) -> SyntheticBatch:
    """Draws image `indices[i]` of person `identities[i]`.

    Identity: outline, jaw, eyes, brows, nose, mouth, skin and its texture, moles, hair, beard, glasses. What varies
    between the images of one person: pose, expression, gaze, light, exposure, occlusion, blur, noise, background, and
    small errors of the alignment. Each picture depends on (seed, identity, index, size) alone, to the last bit.

    Args:
        identities: From 0 to 999,999.
        indices: From 0 to 9,999; as many.
        seed: In [0, 2^64): another seed, other people.
        size: Side in pixels, or height and width; faces are aligned to `template(size)`.

    Raises:
        ValueError: A number out of its range, or different lengths.
    """
    _check_seed(seed)
    _check_size(size)
    if len(identities) != len(indices):
        raise ArgumentError(f"indices: expected one for each of the {len(identities)} identities, got {len(indices)}")
    for argument, values, limit in (("identities", identities, _IDENTITIES), ("indices", indices, _IMAGES)):
        wrong = [value for value in values if not 0 <= value < limit]
        if wrong:
            raise ArgumentError(f"{argument}: expected numbers from 0 to {limit - 1}, got {wrong[0]}")
    people = torch.tensor([int(value) for value in identities], dtype=torch.int64)
    images = torch.tensor([int(value) for value in indices], dtype=torch.int64)
    pictures, points = _drawn(seed, people, images, size)
    return SyntheticBatch(images=pictures.to(torch.float32).div_(255), landmarks=points, identities=people)


class SyntheticFaces(FaceSource):
    """People that do not exist, as a source of faces: `s<seed>-<identity>/<index>`.

    The images are drawn when they are loaded, so a data set of any length costs nothing to keep. `path` gives the
    name back; there is no file.

    Attributes:
        seed: Of the people and of their images.
        identities: How many people.
        per_identity: How many images of each.
        first: Number of the first person: two sources of one seed with disjoint ranges share nobody.
    """

    def __init__(
        self, *, identities: int = 100, per_identity: int = 10, seed: int = 0, size: Size = 112, first: int = 0
    ) -> None:
        """Names the images; none is drawn yet.

        Raises:
            ValueError: A number out of its range.
        """
        _check_seed(seed)
        _check_size(size)
        if not 1 <= per_identity <= _IMAGES:
            raise ArgumentError(f"per_identity: expected 1 to {_IMAGES}, got {per_identity}")
        if identities < 1 or first < 0 or first + identities > _IDENTITIES:
            raise ArgumentError(
                f"identities, first: expected numbers within 0 to {_IDENTITIES - 1}, got {identities} from {first} on"
            )
        self.seed = seed
        self.identities = identities
        self.per_identity = per_identity
        self.first = first
        self._keys = {
            f"s{seed}-{person:06d}/{index:04d}": (person, index)
            for person in range(first, first + identities)
            for index in range(per_identity)
        }
        super().__init__({name: Path(name) for name in self._keys}, size=size, landmarks=None)

    def load(self, name: str) -> Face:
        """Draws one face.

        Raises:
            KeyError: There is no such name.
        """
        return self._draw((name,))[0]

    def points(self, name: str) -> Points:
        """The five landmarks of a face as drawn, (5, 2) as (x, y) in pixels.

        Raises:
            KeyError: There is no such name.
        """
        person, index = self._key(name)
        assert self.size is not None
        drawn = render_faces((person,), (index,), seed=self.seed, size=self.size)
        return drawn.landmarks[0].double().numpy()

    def pairs(self, count: int, *, folds: int = 10, seed: int = 0) -> tuple[Pair, ...]:
        """Pairs to verify, half of them of one person; see `deal_pairs`.

        Raises:
            PairError: A count that cannot be divided, or too few identities or images for it.
        """
        return deal_pairs(self.names, count, folds=folds, seed=seed)

    def _survey(self, names: Sequence[str]) -> list[Any]:
        """Nothing can be wrong with what is drawn."""
        return []

    def _stream(self, names: Iterable[str], **how: Any) -> Stream[Face]:
        """As of any source; several faces are drawn at once, which is faster and gives the same bits."""
        return _Blocks(self._draw, names, **how)

    def _signature(self, name: str, known: KnownHashes | None) -> str:
        self._key(name)
        return "synthetic"  # the picture is a function of its name, which has the seed in it, and of the size

    def _content_hash(self, name: str) -> str:
        return self.load(name).source_hash

    def _key(self, name: str) -> tuple[int, int]:
        if name not in self._keys:
            raise UnknownNameError(f"name: expected one of the {len(self)} images, got {name}")
        return self._keys[name]

    def _draw(self, names: Sequence[str]) -> list[Face]:
        keys = [self._key(name) for name in names]
        assert self.size is not None
        people, images = (torch.tensor(part, dtype=torch.int64) for part in zip(*keys, strict=True))
        pictures = _drawn(self.seed, people, images, self.size)[0]
        return [
            Face(
                name=name,
                id=face_id(name),
                identity=name.rpartition("/")[0],
                image=picture.to(torch.float32).div_(255),
                source_hash=hashlib.sha256(picture.numpy().tobytes()).hexdigest(),
                matrix=None,
            )
            for name, picture in zip(names, pictures, strict=True)
        ]


def write_faces(source: FaceSource, names: Sequence[str], folder: Path, *, progress: Progress = silent) -> None:
    """Write faces of a source into a folder of identities: ``<name>.png``."""
    with source.stream(names) as faces:
        for number, face in enumerate(faces, 1):
            path = folder / f"{face.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, to_uint8(face.image))
            progress("drawing faces", number, len(names))


class _Blocks(Stream[Face]):
    """A stream whose workers draw blocks of faces."""

    def __init__(
        self,
        draw: Callable[[Sequence[str]], list[Face]],
        names: Iterable[str],
        *,
        workers: int,
        ahead: int,
        on_error: Literal["raise", "skip"],
    ) -> None:
        super().__init__(lambda name: draw((name,))[0], (), workers=workers, ahead=ahead, on_error=on_error)
        each = max(1, min(_BLOCK, ahead))
        self._inner: Stream[list[Face]] = Stream(
            lambda block: draw(block.split("\n")), _joined(names, each), workers=workers, ahead=max(1, ahead // each)
        )
        self._ready: Iterator[Face] = iter(())

    def __next__(self) -> Face:
        face = next(self._ready, None)
        if face is None:
            self._ready = iter(next(self._inner))
            face = next(self._ready)
        return face

    def close(self) -> None:
        self._ready = iter(())
        self._inner.close()
        super().close()


def _joined(names: Iterable[str], each: int) -> Iterator[str]:
    rest = iter(names)
    while block := tuple(itertools.islice(rest, each)):
        yield "\n".join(block)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise ArgumentError(f"seed: expected a number in [0, 2^64), got {seed}")


def _check_size(size: Size) -> None:
    if not all(_SIZES[0] <= side <= _SIZES[1] for side in shape_of(size)):
        raise ArgumentError(f"size: expected {_SIZES[0]} to {_SIZES[1]} pixels, got {size}")


def _drawn(seed: int, people: Tensor, images: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """As `render`; pictures that are not square are the middle of those of the longer side."""
    height, width = shape_of(size)
    side = max(height, width)
    pictures, points = render(seed, people, images, side)
    top, left = (side - height) // 2, (side - width) // 2
    if height == width:
        return pictures, points
    cut = pictures[:, :, top : top + height, left : left + width].contiguous()
    return cut, points - torch.tensor((float(left), float(top)))
