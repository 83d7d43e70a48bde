"""A face that a source has loaded, and the number that keys its random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from fastadv.data.alignment import Matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """An image of a face, ready for a model.

    Attributes:
        name: `identity/file`, without extension: "Aaron_Peirsol/Aaron_Peirsol_0001".
        id: `face_id(name)`: the key of the image's random numbers.
        identity: Who it is.
        image: (3, H, W) float32 RGB in [0, 1], on the 8-bit grid (every value is n / 255).
        source_hash: SHA-256 of the file, hexadecimal.
        matrix: (2, 3) float64 from the file's to the crop's pixel-edge coordinates; None when the image
            is the whole file.
    """

    name: str
    id: int
    identity: str
    image: Tensor
    source_hash: str
    matrix: Matrix | None


def face_id(name: str) -> int:
    """A number from 0 to 2^63 - 1 for a name: the first 63 bits of its BLAKE2b-64 digest.

    Depends on the name alone, so that an image draws the same random numbers in any data set, order or run.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
