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
_BYTES = 2**28  # of all rows: a bound on memory, whatever the length of the run


class Learned(Mapping[str, Tensor]):
    """Float32 outputs by the names of faces, ``(D,)`` or ``(K,)`` on the CPU; the oldest are forgotten.

    Args:
        source: Where the targets are.
        model: The network.
        output: ``"embedding"`` or ``"logits"``.
        remembered: How many faces at most; fewer where their rows take more than 256 MiB, and more where one call asks
            for more.
    """

    def __init__(self, source: FaceSource, model: FaceModel, output: str, *, remembered: int = 8192) -> None:
        self._source, self._output, self._remembered = source, output, remembered
        self._model = prepare(model, precision="fp32", channels_last=True)
        self._places: OrderedDict[str, int] = OrderedDict()
        # One block: rows that live long among the short-lived blocks of the network would split up the free memory.
        self._rows = torch.empty(0, 0)

    def learn(self, faces: Sequence[Face], targets: Iterable[str], spent: Spent) -> None:
        """Compute the missing outputs of loaded faces, and of targets by their names.

        Raises:
            ArgumentError: An embedding is zero or not finite.
            ImageError, AlignmentError: A target cannot be read.
        """
        images = {face.name: face.image for face in faces}
        asked = dict.fromkeys([*images, *filter(None, targets)])
        wanted = [name for name in asked if name not in self._places and name not in images]
        if wanted:
            with spent.on("images"), self._source.stream(wanted, workers=workers()) as loaded:
                images.update((face.name, face.image) for face in map(self._source.unchanged, loaded))
        new = [name for name in images if name not in self._places]
        if new:
            with spent.on("evaluation"), plain_modes(self._model.device), torch.no_grad():
                stacked = torch.stack([images[name] for name in new]).to(self._model.device)
                said = fixed_batches(self._said, stacked, _BATCH).cpu()
            if self._output == "embedding":
                for name, row in zip(new, said, strict=True):
                    check_embeddings(f"embedding of {name}", row[None])
        for name in asked:
            if name in self._places:  # not forgotten for those that follow
                self._places.move_to_end(name)
        if new:
            self._keep(new, said, least=len(asked))

    def _said(self, images: Tensor) -> Tensor:
        return output_of(self._model, self._output, images.contiguous(memory_format=torch.channels_last))

    def _keep(self, names: Sequence[str], rows: Tensor, *, least: int) -> None:
        """Take in new rows, which take the places of the oldest; at least ``least`` are remembered."""
        most = max(least, min(self._remembered, _BYTES // (4 * rows.shape[1])))
        if len(self._rows) < most:
            table = rows.new_empty(most, rows.shape[1])
            if len(self._rows):
                table[: len(self._rows)] = self._rows
            self._rows = table
        for name, row in zip(names, rows, strict=True):
            free = len(self._places)
            place = free if free < len(self._rows) else self._places.popitem(last=False)[1]
            self._rows[place] = row
            self._places[name] = place

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[self._places[name]].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
