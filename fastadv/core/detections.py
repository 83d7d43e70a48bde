"""What a face detector finds in a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The faces of one picture, the best score first.

    Coordinates are (x, y) in pixel-edge coordinates: pixel i covers [i, i + 1). Boxes and points may lie partly outside
    of the picture.

    Attributes:
        boxes: (n, 4) float64: left, top, right, bottom.
        landmarks: (n, 5, 2) float64: left eye, right eye, nose, left and right mouth corner; the viewer's left first.
        scores: (n,) float64: how sure the detector is, in [0, 1].
    """

    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)
