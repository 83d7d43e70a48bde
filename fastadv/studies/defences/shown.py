"""Pairs shown to a defended verifier, and what an image costs it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastadv.data import FaceSource, Pair
from fastadv.defences import Defence, PairAttackAsDefence, ThreatModel
from fastadv.defences.evade_detector import WatchedModel
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import cosine_scores
from fastadv.runs.embedding import outputs
from fastadv.runs.work import Work
from fastadv.studies.defences.kept import Arrays
from fastadv.studies.defences.results import Floats

_BATCH = 32
_TURNS = 3  # of a measurement of time
_DEFENDER = 1 << 63  # away from the seeds of attackers
Loader = Callable[[int], Tensor]  # the image of a pair, by its place


class Shown:
    """The pairs and the bare verifier.

    Args:
        source: The faces.
        pairs: What is compared.
        model: The bare verifier.
        work: Its seed, and who is told of the progress.
    """

    def __init__(self, source: FaceSource, pairs: Sequence[Pair], model: FaceModel, work: Work) -> None:
        self._source, self._pairs, self._model, self._work = source, pairs, model, work
        self.secret = (work.seed + _DEFENDER) % (1 << 64)

    def loader(self, side: str, source: FaceSource | None = None) -> Loader:
        """The ``"first"`` or ``"second"`` image of each pair, of another source where one is given."""
        return lambda k: (source or self._source).load(getattr(self._pairs[k], side)).image

    def probe(self, count: int) -> tuple[Tensor, Tensor]:
        """The first and the second images of so many pairs at most."""
        places = range(min(count, len(self._pairs)))
        first, second = (torch.stack([self.loader(side)(k) for k in places]) for side in ("first", "second"))
        return first, second

    def embedded(
        self, defence: Defence | None, threat: ThreatModel, first: Loader, second: Mapping[str, Tensor], stage: str
    ) -> Arrays:
        """What the defended verifier, and the detector where there is one, say of an image in each pair's first place.

        Args:
            defence: What the images pass.
            threat: Whose detector looks at them.
            first: The images.
            second: The defended embeddings of the others, by name.
            stage: What the progress is called.

        Returns:
            ``scores``, cosines; ``flagged``, by the detector, as are images with a score that is no number;
            ``defended``, the L2 norm of the change that the network meets: of attack and defence together.
        """
        watched = threat.detector is not None
        network = self._model if threat.detector is None else WatchedModel(self._model, threat.detector)
        # a query that is known to be attacked is not attacked again
        bare = defence is None or defence.takes_attacked
        judge = prepare(network if bare else defence.wrap(network, seed=self.secret), precision="fp32")  # type: ignore[union-attr]
        seen: Callable[[Tensor], Tensor] | None = getattr(judge, "seen", None)
        if seen is not None:  # so that no image passes the defence twice
            judge = prepare(network, precision="fp32")
        found, changes = [], []
        for places in self._batches(stage):
            batch = torch.stack([first(k) for k in places])
            batch = batch.to(judge.device).contiguous(memory_format=torch.channels_last)
            batch = batch if seen is None else fixed_batches(seen, batch, _BATCH)
            found.append(fixed_batches(judge, batch, _BATCH).cpu())
            changes.append(self._changes(places, batch))
        rows = torch.cat(found)
        others = torch.stack([second[p.second] for p in self._pairs])
        flagged = ~(rows[:, -1] < threat.threshold).numpy() if watched else np.zeros(len(rows), bool)
        scores = cosine_scores(rows[:, :-1] if watched else rows, others)
        return {"scores": scores, "flagged": flagged, "defended": np.concatenate(changes)}

    def flipped(
        self, defence: PairAttackAsDefence, threshold: float, first: Loader, stage: str, second: Loader | None = None
    ) -> Arrays:
        """As ``embedded``, of pairs whose decision is flipped.

        Args:
            defence: What flips it.
            threshold: Of the bare verifier.
            first: The images in the pairs' first places.
            stage: What the progress is called.
            second: Those in the second places; None: the clean ones.
        """
        judge = prepare(self._model, precision="fp32")
        sides = (first, second or self.loader("second"))
        scores, changes = [], []
        for places in self._batches(stage):
            queries, gallery = (torch.stack([side(k) for k in places]).to(judge.device) for side in sides)
            made = defence.attacked(self._model, queries, gallery, threshold=threshold, seed=self.secret)
            scores.append(cosine_scores(*(outputs(judge, each, judge, batch=_BATCH) for each in made)))
            changes.append(self._changes(places, made[0]))
        whole = np.concatenate(scores)
        return {"scores": whole, "flagged": np.zeros(len(whole), bool), "defended": np.concatenate(changes)}

    def _batches(self, stage: str) -> Iterator[range]:
        """The places of the pairs, so many at a time; what is done with them is reported."""
        count = len(self._pairs)
        for begin in range(0, count, _BATCH):
            places = range(begin, min(begin + _BATCH, count))
            yield places
            self._work.progress(stage, places.stop, count)

    def _changes(self, places: range, images: Tensor) -> Floats:
        """The L2 distances of images from the first ones of the pairs."""
        originals = torch.stack([self.loader("first")(k) for k in places])
        return np.asarray((images.cpu() - originals).flatten(1).double().norm(dim=1).numpy())


def seconds(work: Callable[[Tensor], Tensor], bare: FaceModel, images: Tensor) -> tuple[float, float]:
    """For an image by some work and by the bare model, in turn, so that a drift of the machine meets both."""
    images = images.to(bare.device).contiguous(memory_format=torch.channels_last)
    ready: list[Callable[[Tensor], Tensor]] = [work, prepare(bare, precision="fp32")]
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        for _ in range(_TURNS + 1):
            for each, spent in zip(ready, times, strict=True):
                begin = time.perf_counter()
                each(images).sum().item()
                spent.append(time.perf_counter() - begin)
    own, other = (statistics.median(spent[1:]) / len(images) for spent in times)  # the first ones warm up
    return own, other
