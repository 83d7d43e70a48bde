"""What an attack on a batch gives back."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastadv.core import text
from fastadv.core.errors import ArgumentError, MissingPackageError
from fastadv.core.files import write_atomically
from fastadv.engine.job import MET_AT_START, Result
from fastadv.models.modes import plain_modes

if TYPE_CHECKING:
    from pandas import DataFrame

RESULTS = "results.csv"
_CHANNELS = (1, 3, 4)  # of grey, RGB and RGBA pictures
# the fields of a result that become tensors
_TYPES = {
    "success": torch.bool,
    "ticks": torch.int64,
    **dict.fromkeys(("linf", "l2", "score_before", "score_after"), torch.float32),
}
_COLUMNS = ("success", "success_float", *(name for name in _TYPES if name != "success"), "met_before")
_SHOWN = 16


@dataclass(frozen=True, kw_only=True, repr=False)
class Adversarials:
    """The results of ``run``, row i for image i.

    ``success[~met_before].float().mean()`` is the success of the images that had something to reach.

    Attributes:
        images: ``(N, C, H, W)`` float32 on the 8-bit grid.
        success: ``(N,)`` bool, judged in float32 on the 8-bit image.
        success_float: ``(N,)`` bool, before rounding; None unless the engine is to measure it (``Engine``).
        ticks: ``(N,)`` int64, model evaluations consumed.
        linf: ``(N,)`` float32, largest change of a pixel, in [0, 1].
        l2: ``(N,)`` float32.
        score_before: ``(N,)`` float32, the goal's score of the clean image.
        score_after: ``(N,)`` float32, the same of the adversarial image.
        flags: For each image the names of what was noticed.
    """

    images: Tensor
    success: Tensor
    success_float: Tensor | None
    ticks: Tensor
    linf: Tensor
    l2: Tensor
    score_before: Tensor
    score_after: Tensor
    flags: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, done: Sequence[Result], images: Tensor) -> Adversarials:
        """The results of some images, in their order; their ``images`` are kept as they are."""
        before = [r.success_float for r in done if r.success_float is not None]
        with plain_modes(images.device):
            return cls(
                images=images,
                success_float=torch.tensor(before, dtype=torch.bool) if before or not done else None,
                flags=tuple(r.flags for r in done),
                **{name: torch.tensor([getattr(r, name) for r in done], dtype=kind) for name, kind in _TYPES.items()},
            )

    @property
    def met_before(self) -> Tensor:
        """``(N,)`` bool, whether the clean image reached the goal already."""
        return torch.tensor([MET_AT_START in flags for flags in self.flags], dtype=torch.bool)

    def __len__(self) -> int:
        """How many images."""
        return len(self.success)

    def __repr__(self) -> str:
        """One line: how many, how many succeeded, and what they took."""
        if not len(self):
            return "Adversarials(0 images)"
        return (
            f"Adversarials({text.count(len(self), 'image')}, {int(self.success.sum())} succeeded, "
            f"median L∞ {text.levels(float(self.linf.median()))}, "
            f"{float(self.ticks.double().mean()):.1f} evaluations each)"
        )

    def to_pandas(self) -> DataFrame:
        """One row an image, without the pixels.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise MissingPackageError(
                "to_pandas: expected the package pandas, got no such package; pip install 'fastadv[pandas]'"
            ) from error
        return DataFrame(self._columns())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write every image as a PNG, ``000000.png`` and so on, and ``results.csv`` with one row for each, last.

        Args:
            folder: Made where it is missing; files of these names are replaced.

        Raises:
            ValueError: Images of two channels, which PNG has not.
            OSError: With the file's name.
        """
        pictures = self._pictures(len(self))
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = [f"{i:06d}.png" for i in range(len(self))]
        for name, picture in zip(names, pictures, strict=True):
            write_atomically(path / name, _png(picture))
        columns = {"file": names, **self._columns()}
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        write_atomically(path / RESULTS, "".join(f"{row}\n" for row in rows).encode())
        return path

    def show(self, count: int = _SHOWN, *, columns: int = 8) -> Image.Image:
        """The first images side by side.

        Args:
            count: How many, at most.
            columns: Images in a row.

        Raises:
            ValueError: There is none to show, a number below 1, or images of two channels.
        """
        if min(count, columns, len(self)) < 1:
            raise ArgumentError(
                f"count, columns: expected 1 or more of each and at least one image, got {count} and {columns}"
            )
        pictures = self._pictures(count)
        width, height = pictures[0].size
        across = min(columns, len(pictures))
        grid = Image.new(pictures[0].mode, (across * width, -(-len(pictures) // across) * height))
        for i, picture in enumerate(pictures):
            grid.paste(picture, (i % across * width, i // across * height))
        return grid

    def _repr_html_(self) -> str:
        """For notebooks: the line of `repr`, and the first images where they are pictures."""
        line = f"<p>{self!r}</p>"
        if not len(self) or self.images.shape[1] not in _CHANNELS:
            return line
        data = base64.b64encode(_png(self.show())).decode()
        return f'{line}<img alt="the first adversarial images" src="data:image/png;base64,{data}">'

    def _columns(self) -> dict[str, list[Any]]:
        found = {name: getattr(self, name) for name in _COLUMNS}
        return {
            **{name: v.tolist() for name, v in found.items() if v is not None},
            "flags": [" ".join(f) for f in self.flags],
        }

    def _pictures(self, count: int) -> list[Image.Image]:
        if self.images.shape[1] not in _CHANNELS:
            raise ArgumentError(f"images: expected 1, 3 or 4 channels for pictures, got {self.images.shape[1]}")
        levels = (self.images[:count].detach().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(_squeezed(image)) for image in levels]


def _squeezed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
