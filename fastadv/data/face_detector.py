"""What the commands ask of a face detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastadv.core.detections import Detections


class FaceDetector(Protocol):
    """Finds faces and their five landmarks; `fastadv.models.MTCNN` is the built-in one.

    What it finds in a picture must not depend on the other pictures of the call.
    """

    @property
    def identity(self) -> Mapping[str, object]:
        """What decides about its results, as plain JSON values: a run goes on with an equal detector only."""
        ...

    def __call__(self, images: Sequence[NDArray[np.uint8]], /) -> list[Detections]:
        """The faces of each picture.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.
        """
        ...
