"""Copy what ``engine-fim``, ``peers`` and ``surrogates`` read: ``python -m bench.subset DATA OUT``.

The copy (some 40 MB) gives the same figures as the whole of LFW, on a machine to which the whole is too much to bring.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bench.against_peers import IDENTITIES
from bench.optimisation import several_images
from fastadv.data import LFW
from fastadv.data.lfw import write_lfw_pairs

_FOLDS = (0, 1)  # they have the pairs of engine-fim


def copy(data: Path, out: Path) -> int:
    """Copy the first two folds of pairs, all images of the first people with three or more, and the weights.

    Returns:
        How many images were copied.
    """
    source = LFW(data / "lfw")
    pairs = [pair for pair in source.pairs if pair.fold in _FOLDS]
    people = several_images(source)[:IDENTITIES]
    wanted = sorted({name for images in people for name in images} | {n for p in pairs for n in (p.first, p.second)})
    for name in wanted:
        path = source.path(name)
        place = out / "lfw" / "images" / name.partition("/")[0] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    write_lfw_pairs(out / "lfw" / "pairs.txt", pairs)
    if (data / "lfw" / "landmarks.txt").is_file():
        shutil.copyfile(data / "lfw" / "landmarks.txt", out / "lfw" / "landmarks.txt")
    shutil.copytree(data / "weights", out / "weights", dirs_exist_ok=True)
    return len(wanted)


if __name__ == "__main__":
    print(f"{copy(Path(sys.argv[1]), Path(sys.argv[2]))} images")
