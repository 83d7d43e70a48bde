"""The float32 outputs of a network for the faces of a run, computed once each: a source may be another one's target."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fastadv.core.cores import workers
from fastadv.core.spent import Spent
from fastadv.data import Face, FaceSource
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.models.checks import check_embeddings
from fastadv.models.modes import plain_modes
from fastadv.models.outputs import output_of

_BATCH = 32
_REMEMBERED = 8192  # faces: a bound on memory, whatever the length of the run


class Learned(Mapping[str, Tensor]):
    """Float32 outputs by the names of faces, ``(D,)`` or ``(K,)`` on the CPU; the oldest are forgotten.

    Args:
        source: Where the targets are.
        model: The network.
        output: ``"embedding"`` or ``"logits"``.
    """

    def __init__(self, source: FaceSource, model: FaceModel, output: str) -> None:
        self._source, self._output = source, output
        self._model = prepare(model, precision="fp32", channels_last=True)
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def learn(self, faces: Sequence[Face], targets: Iterable[str], spent: Spent) -> None:
        """Compute the missing outputs of loaded faces, and of targets by their names.

        Raises:
            ArgumentError: An embedding is zero or not finite.
            ImageError, AlignmentError: A target cannot be read.
        """
        images = {face.name: face.image for face in faces}
        wanted = list(dict.fromkeys(name for name in targets if name and name not in self._rows and name not in images))
        if wanted:
            with spent.on("images"), self._source.stream(wanted, workers=workers()) as loaded:
                images.update((face.name, face.image) for face in map(self._source.unchanged, loaded))
        new = [name for name in images if name not in self._rows]
        if new:
            with spent.on("evaluation"), plain_modes(self._model.device), torch.no_grad():
                stacked = torch.stack([images[name] for name in new]).to(self._model.device)
                said = fixed_batches(self._said, stacked, _BATCH).cpu()
            if self._output == "embedding":
                for name, row in zip(new, said, strict=True):
                    check_embeddings(f"embedding of {name}", row[None])
            self._rows.update(zip(new, said, strict=True))
        for name in images:
            self._rows.move_to_end(name)
        while len(self._rows) > max(_REMEMBERED, len(images)):
            self._rows.popitem(last=False)

    def _said(self, images: Tensor) -> Tensor:
        return output_of(self._model, self._output, images.contiguous(memory_format=torch.channels_last))

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
