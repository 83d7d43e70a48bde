"""Studies of transfer as parts of recipes: hit by hit, so that methods can be compared on the same pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.estimates import Estimate, mean_of, share_of
from fastadv.core.progress import Progress
from fastadv.core.resolution import measurable
from fastadv.core.statistics import wilson
from fastadv.runs.inputs import network_name, open_faces, open_faces_of, open_named_model
from fastadv.studies.detection.study import default_head
from fastadv.studies.papers.faces import some_people
from fastadv.studies.papers.recipe import Cost, Setup, StudyPart
from fastadv.studies.transfer.folder import TransferPlan, transfer_folder
from fastadv.studies.transfer.networks import parse_network
from fastadv.studies.transfer.plan import parse_method
from fastadv.studies.transfer.results import Transfer, TransferCell
from fastadv.training import save_weights, train_head

EPS = 10 / 255
_SIZE = 112  # of crops that only names are taken of
_CLASSES, _IMAGES = 200, 20  # of a class head that is trained here, at most


@dataclass(frozen=True, kw_only=True)
class TransferPart(StudyPart):
    """Negative pairs attacked on each network, or on ensembles of all but one, and shown to every network.

    Attributes:
        methods: As of a `TransferPlan`.
        steps: Of methods that do not say their own.
        at: Further numbers of steps.
        pairs: How many.
        images: How many sources, and as many targets, they are drawn from.
        fars: Of the thresholds, the largest first: it decides which pairs are negative. Those that the verification
            pairs cannot show are left out.
        ensembles: Whether each surrogate is all networks but one.
        heads: The least number of images of a person that a class head is trained on, of a network without one; None:
            no heads.
    """

    methods: tuple[str, ...]
    steps: int
    at: tuple[int, ...] = ()
    pairs: int
    images: int
    fars: tuple[float, ...]
    ensembles: bool = False
    heads: int | None = None

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Run the study in the folder."""
        networks = [self._with_head(setup, text, folder, progress) for text in setup.networks]
        plan = TransferPlan(
            inputs=setup.inputs(folder / "study", ""),
            networks=networks,
            methods=self.methods,
            surrogates=self._surrogates(setup),
            eps=EPS,
            steps=self.steps,
            at=self.at or None,
            pairs=self.pairs,
            images=self.images,
            far=self._shown(setup),
            verification=setup.verification(),
        )
        found = transfer_folder(plan, progress=progress).targeted
        assert found is not None
        return {
            "networks": list(found.verifiers),
            "pairs": len(found.pairs),
            "independent": independent(found.pairs),
            "fars": list(found.fars),
            "cells": [_described(found, cell) for cell in found.cells],
        }

    def _shown(self, setup: Setup) -> tuple[float, ...]:
        if len(self.fars) == 1:
            return self.fars
        assert setup.data is not None
        source = open_faces(setup.data, size=_SIZE, landmarks=setup.landmarks)
        negatives = sum(not pair.same for pair in setup.verification().open(source, verified=False))
        return (self.fars[0], *(far for far in self.fars[1:] if measurable(far, negatives)))

    def _surrogates(self, setup: Setup) -> list[str] | None:
        if not self.ensembles:
            return None
        return ["+".join(names) for names in combinations(setup.names, len(setup.names) - 1)]

    def _with_head(self, setup: Setup, text: str, folder: Path, progress: Progress) -> str:
        """The network's text; with a class head that is trained on the people with enough images, where it has none."""
        if self.heads is None:
            return text
        known = parse_network(text)
        file = folder / "heads" / f"{known.name}.safetensors"
        if not file.is_file():
            model = open_named_model(known.text, device=setup.device)
            if model.head is not None:
                return text
            assert setup.data is not None
            source = open_faces_of(model, setup.data, landmarks=setup.landmarks)
            chosen = some_people(source, people=_CLASSES, least=self.heads, most=_IMAGES, seed=setup.seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            made = train_head(default_head(setup.seed), model, chosen, progress=progress)
            save_weights(made.model, file)
        return (
            f"{known.model}={file}" if known.name == network_name(known.text) else f"{known.name}={known.model}:{file}"
        )

    def cost(self, setup: Setup) -> Cost:
        """Every gradient of every method on every surrogate; an ensemble's on each of its networks."""
        steps = sum(parse_method(text).recipe(eps=EPS, steps=self.steps).steps for text in self.methods)
        count = len(setup.networks)
        each = count * (count - 1) if self.ensembles else count
        cells = count * len(self.methods)
        shown = self.pairs * cells * (len(self.at) + 1) * count
        return Cost(
            gradients=self.pairs * steps * each, forwards=shown + 2 * self.images * count, images=self.pairs * cells
        )


def _described(found: Transfer, cell: TransferCell) -> dict[str, Any]:
    """Hits as texts of 0 and 1, one for each number of steps, a digit for each pair."""
    targets = {}
    for place, name in enumerate(found.verifiers):
        distance = cell.distance[:, place]
        targets[name] = {
            "hits": [_digits(found.hits(cell, name, k)) for k in range(len(cell.steps))],
            "distance": [float(row.mean()) for row in distance],
            "last": [round(float(value), 4) for value in distance[-1]],
            "by_far": {f"{far:g}": _digits(found.hits(cell, name, far=far)) for far in found.fars},
        }
    return {"surrogate": cell.surrogate, "method": cell.method, "steps": list(cell.steps), "targets": targets}


def independent(pairs: Sequence[tuple[str, str]]) -> float:
    r"""How many independent trials the pairs count as at least: images come in several pairs.

    With :math:`n_i` of n pairs on image i it is :math:`n^2 / \sum_i n_i^2`, of the sources or of the targets, whichever
    is less: the number of images where all are in as many pairs. It bounds the variance of a mean over pairs whose
    numbers are a part of the source, one of the target and one of the pair, each independent of the others.

    Source:
        Kish 1965, "Survey Sampling", section 5.4: the effective size of clusters, as if correlated in full.
    """
    counts = [Counter(pair[side] for pair in pairs).values() for side in (0, 1)]
    return min(len(pairs) ** 2 / sum(count * count for count in each) for each in counts)


def _digits(hits: NDArray[np.bool_]) -> str:
    return "".join("01"[int(hit)] for hit in hits)


@dataclass(frozen=True, eq=False)
class Hits:
    """The results of a `TransferPart`, to be asked for by method and number of steps."""

    found: Mapping[str, Any]

    @property
    def independent(self) -> float:
        """How many independent trials the pairs count as."""
        return float(self.found["independent"])

    @property
    def moves(self) -> tuple[tuple[str, str], ...]:
        """Each surrogate with each network that is none of its own."""
        surrogates = dict.fromkeys(cell["surrogate"] for cell in self.found["cells"])
        return tuple((s, t) for s in surrogates for t in self.found["networks"] if t not in s.split("+"))

    def cell(self, surrogate: str, method: str) -> Mapping[str, Any]:
        """A method on a surrogate."""
        cells: Sequence[Mapping[str, Any]] = self.found["cells"]
        return next(c for c in cells if (c["surrogate"], c["method"]) == (surrogate, method))

    def of(
        self, move: tuple[str, str], method: str, steps: int | None = None, far: float | None = None
    ) -> NDArray[np.bool_]:
        """``(N,)`` whether the target accepts each pair: after so many steps, or at the end at a false accept rate."""
        cell = self.cell(move[0], method)
        target = cell["targets"][move[1]]
        place = -1 if steps is None else cell["steps"].index(steps)
        digits = target["hits"][place] if far is None else target["by_far"][f"{far:g}"]
        return np.array([digit == "1" for digit in digits])

    def rate(self, move: tuple[str, str], method: str, steps: int | None = None, far: float | None = None) -> Estimate:
        """The hit rate, with Wilson's interval of as many trials as are independent."""
        hits = self.of(move, method, steps, far)
        low, high = wilson(float(hits.mean()) * self.independent, self.independent)
        return replace(share_of(int(hits.sum()), len(hits)), low=low, high=high)

    def by_pair(
        self, method: str, steps: int | None = None, surrogate: str | None = None, far: float | None = None
    ) -> NDArray[np.float64]:
        """``(N,)`` the share of the networks that accept each pair, over all surrogates or those of one."""
        chosen = [move for move in self.moves if surrogate in (None, move[0])]
        return np.asarray(np.mean([self.of(move, method, steps, far) for move in chosen], axis=0))

    def mean(
        self, method: str, steps: int | None = None, surrogate: str | None = None, far: float | None = None
    ) -> Estimate:
        """The mean hit rate over all surrogates and targets; a pair counts once, whatever number of networks saw it."""
        return self.bounded(self.by_pair(method, steps, surrogate, far), low=0.0)

    def above(self, one: str, other: str, steps: tuple[int | None, int | None] = (None, None)) -> Estimate:
        """How much higher one method's mean hit rate is than another's, on the same pairs."""
        return self.bounded(self.by_pair(one, steps[0]) - self.by_pair(other, steps[1]))

    def bounded(self, values: NDArray[np.float64], *, low: float = -1.0) -> Estimate:
        """The mean of numbers in [low, 1], one for each pair, as ``bounded``; of pairs that share images."""
        return bounded(values, low=low, count=self.independent)

    def unbounded(self, values: NDArray[np.float64]) -> Estimate:
        """The mean of numbers, one for each pair, of pairs that share images."""
        return mean_of(values, np.full(len(values), self.independent / len(values)))

    def first(self, method: str) -> int:
        """The least number of steps that the method was measured after."""
        return int(self.cell(self.moves[0][0], method)["steps"][0])

    def distances(self, method: str, *, white_box: bool) -> NDArray[np.float64]:
        """``(N,)`` the distance to the target image at the end, on the surrogates themselves or on the other networks.

        It is the mean over them, pair by pair.
        """
        found = [
            self.cell(surrogate, method)["targets"][target]["last"]
            for surrogate, target in ([(s, s) for s, _ in self.moves] if white_box else self.moves)
        ]
        return np.asarray(np.mean(found, axis=0))


def bounded(values: NDArray[np.float64], *, low: float = -1.0, count: float | None = None) -> Estimate:
    """The mean of numbers in [low, 1], one for each pair, with Student's interval of these and one more at either end.

    The two stand for what was not seen: without them, a few equal numbers would have an interval of no width. All
    numbers together count as ``count`` independent ones; None: each as one.

    Source:
        Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions", for 0 and 1.
    """
    weight = 1.0 if count is None else count / len(values)
    wide, value = mean_of([*values, low, 1.0], [*[weight] * len(values), 1.0, 1.0]), float(np.mean(values))
    return Estimate(value=value, low=max(low, min(value, wide.low)), high=min(1.0, max(value, wide.high)))
