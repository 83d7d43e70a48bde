"""What a study of transfer found: its cells, their figures, and the files of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_json
from fastadv.data import RunFolder
from fastadv.recognition import PairedDifference, count_success, paired_difference, wilson
from fastadv.studies.transfer.plan import BASES, OTHERS, Verifier, distance


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferCell:
    """One method on one surrogate, against every network.

    Attributes:
        surrogate: Its network's name, or several with "+" between them.
        method: The method's label.
        name: The method's name in the catalogue.
        rate: The drop rate that was asked for, or None.
        steps: ``(S,)`` the numbers of steps after which the images were measured, ascending.
        similarity: ``(S, M, N)`` cosines of the adversarial image and its target, by steps, network and pair.
    """

    surrogate: str
    method: str
    name: str
    rate: float | None
    steps: tuple[int, ...]
    similarity: NDArray[np.float32]

    @property
    def distance(self) -> NDArray[np.float64]:
        """``(S, M, N)`` distances of the unit embeddings, ``sqrt(2 - 2 cos)``."""
        return np.sqrt(np.maximum(0.0, 2 - 2 * self.similarity.astype(np.float64)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """What a method is compared with.

    Attributes:
        cell: The base's.
        place: Which of its measurements.
    """

    cell: TransferCell
    place: int

    @property
    def steps(self) -> int:
        """After how many steps."""
        return self.cell.steps[self.place]

    @property
    def label(self) -> str:
        """``"fim:13"``, or ``"fim at 13 of 1500 steps"`` for a measurement on the way."""
        whole = self.cell.steps[-1]
        return self.cell.method if whole == self.steps else f"{self.cell.method} at {self.steps} of {whole} steps"


@dataclass(frozen=True, kw_only=True, eq=False)
class OverSet:
    """A cell's hits and distances on a set of targets, after each number of steps.

    Attributes:
        networks: The targets.
        accepted: ``(S, N)`` how many of them accept each pair, by steps.
        distances: ``(S,)`` the mean distance of the pairs, over the targets.
    """

    networks: tuple[str, ...]
    accepted: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def trials(self) -> int:
        """Pairs times targets."""
        return self.accepted.shape[1] * len(self.networks)

    @property
    def hits(self) -> NDArray[np.int64]:
        """``(S,)`` of the trials."""
        return np.asarray(self.accepted.sum(1))

    def interval(self, step: int = -1) -> tuple[float, float]:
        """Wilson's of the mean hit rate, as if the targets agreed on every pair: a pair is one trial.

        Too narrow where pairs share images: the pairs are taken for independent.
        """
        pairs = self.accepted.shape[1]
        return wilson(round(float(self.hits[step]) / len(self.networks)), pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """A study's findings.

    Attributes:
        verifiers: The networks with their thresholds, by name.
        pairs: Names of source and target image.
        clean: ``(M, N)`` cosines before the attacks.
        cells: One for every surrogate and method.
        sets: Networks of the sets of targets, by name.
    """

    verifiers: Mapping[str, Verifier]
    pairs: tuple[tuple[str, str], ...]
    clean: NDArray[np.float32]
    cells: tuple[TransferCell, ...]
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def fars(self) -> tuple[float, ...]:
        """The false accept rates of the thresholds, the largest first."""
        return tuple(each.far for each in next(iter(self.verifiers.values())).thresholds)

    def threshold(self, target: str, far: float | None = None) -> float:
        """A network's threshold at a false accept rate of the study; None: at the largest.

        Raises:
            ValueError: The study has no such rate.
        """
        if far is None:
            return self.verifiers[target].threshold
        if far not in self.fars:
            raise ArgumentError(f"far: expected one of {', '.join(f'{f:g}' for f in self.fars)}, got {far:g}")
        return self.verifiers[target].thresholds[self.fars.index(far)].cosine

    def hits(self, cell: TransferCell, target: str, step: int = -1, *, far: float | None = None) -> NDArray[np.bool_]:
        """``(N,)`` whether the network accepts each pair: ``d(F(x_adv), F(x_t)) < t_m`` (Zhong and Deng, eq. 14)."""
        place = list(self.verifiers).index(target)
        return np.asarray(cell.similarity[step, place] >= self.threshold(target, far))

    def over(self, cell: TransferCell, networks: Sequence[str], *, far: float | None = None) -> OverSet | None:
        """Hits and distances on the networks that the surrogate does not hold, or None where it holds all of them."""
        targets = tuple(name for name in networks if name not in cell.surrogate.split("+"))
        if not targets:
            return None
        places = [list(self.verifiers).index(name) for name in targets]
        limits = np.array([[self.threshold(name, far)] for name in targets])
        accepted = (cell.similarity[:, places] >= limits).sum(1)
        return OverSet(networks=targets, accepted=accepted, distances=cell.distance[:, places].mean((1, 2)))

    def met(self, target: str) -> NDArray[np.bool_]:
        """``(N,)`` whether the network accepts each clean pair: only pairs that no network does are taken."""
        place = list(self.verifiers).index(target)
        return np.asarray(self.clean[place] >= self.verifiers[target].threshold)

    def hit_rate(self, cell: TransferCell, target: str, step: int = -1, *, far: float | None = None) -> float:
        """The share of them."""
        return float(self.hits(cell, target, step, far=far).mean())

    def base(self, cell: TransferCell) -> Base | None:
        """What this cell is compared with: the method without what it adds, on the same surrogate after as many steps.

        A cell of that many steps, or one that was measured after as many: the steps of these methods do not depend on
        their number, so that an iterate is the result of the shorter attack. None where there is neither.
        """
        steps = cell.steps[-1]
        found = [c for c in self._bases(cell) if steps in c.steps]
        found.sort(key=lambda c: c.steps[-1] != steps)  # stable: a whole run first
        return Base(cell=found[0], place=found[0].steps.index(steps)) if found else None

    def _bases(self, cell: TransferCell) -> list[TransferCell]:
        """The base's cells on the same surrogate, whatever their steps."""
        wanted = BASES.get(cell.name)
        return [c for c in self.cells if c.surrogate == cell.surrogate and c.name == wanted]

    def against_base(self, cell: TransferCell, target: str) -> PairedDifference | None:
        """The two methods' hits on the same pairs after as many steps, or None where the base was not run so.

        Its interval is too narrow where pairs share images: the pairs are taken for independent.
        """
        base = self.base(cell)
        if base is None:
            return None
        return paired_difference(self.hits(cell, target), self.hits(base.cell, target, base.place))

    def notices(self) -> tuple[str, ...]:
        """A sentence for every method whose base was run with other numbers of steps only."""
        lines: dict[str, None] = {}
        for cell in self.cells:
            others = sorted({k for c in self._bases(cell) for k in c.steps})
            if others and self.base(cell) is None:
                base, steps = BASES[cell.name], cell.steps[-1]
                mend = f"--at {steps}" if others[-1] > steps else f"--method {base}:{steps}"
                line = (
                    f"{cell.method} ({steps} steps) is not compared with {base}, which was measured after "
                    f"{', '.join(map(str, others))} steps; add {mend}"
                )
                lines[line] = None
        return tuple(lines)


def describe(study: Transfer) -> dict[str, Any]:
    """The findings as plain JSON values: a hit rate with its interval, and a verdict, for every cell and network."""
    return {
        "pairs": len(study.pairs),
        "far": list(study.fars),
        "networks": {
            name: {
                "threshold_cosine": v.threshold,
                "threshold_distance": v.distance,
                "accuracy_at_threshold": v.accuracy,
                "mean_clean_distance": float(np.sqrt(np.maximum(0, 2 - 2 * study.clean[k])).mean()),
                "by_far": [
                    {
                        "far": t.far,
                        "threshold_cosine": t.cosine,
                        "threshold_distance": distance(t.cosine),
                        "accuracy_at_threshold": t.accuracy,
                    }
                    for t in v.thresholds
                ],
            }
            for k, (name, v) in enumerate(study.verifiers.items())
        },
        "cells": [_described(study, cell, name) for cell in study.cells for name in study.verifiers],
        "sets": list(_sets(study)),
        "notices": list(study.notices()),
    }


def _described(study: Transfer, cell: TransferCell, target: str) -> dict[str, Any]:
    hits = study.hits(cell, target)
    low, high = wilson(int(hits.sum()), len(hits))
    place = list(study.verifiers).index(target)
    compared, base = study.against_base(cell, target), study.base(cell)
    return {
        "surrogate": cell.surrogate,
        "method": cell.method,
        "target": target,
        "white_box": target in cell.surrogate.split("+"),
        "hit_rate": float(hits.mean()),
        **count_success(hits, study.met(target)).rates(),
        "low": low,
        "high": high,
        "by_far": [_counted(far, int(study.hits(cell, target, far=far).sum()), len(hits)) for far in study.fars],
        "steps": list(cell.steps),
        "hit_rate_by_steps": [study.hit_rate(cell, target, k) for k in range(len(cell.steps))],
        "distance_by_steps": [float(d) for d in cell.distance[:, place].mean(1)],
        "base": None if base is None else base.label,
        "base_steps": None if base is None else base.steps,
        "against_base": None if compared is None else asdict(compared),
    }


def _counted(far: float, hits: int, trials: int) -> dict[str, Any]:
    low, high = wilson(hits, trials)
    return {"far": far, "hits": hits, "hit_rate": hits / trials, "low": low, "high": high}


def _sets(study: Transfer) -> Iterator[dict[str, Any]]:
    """Means over each set of targets, for every cell whose surrogate leaves some of it."""
    for cell in study.cells:
        for name, networks in {OTHERS: tuple(study.verifiers), **study.sets}.items():
            found = study.over(cell, networks)
            if found is None:
                continue
            by_far = [(far, study.over(cell, networks, far=far)) for far in study.fars]
            low, high = found.interval()
            yield {
                "surrogate": cell.surrogate,
                "method": cell.method,
                "set": name,
                "networks": list(found.networks),
                "hits": int(found.hits[-1]),
                "trials": found.trials,
                "hit_rate": float(found.hits[-1] / found.trials),
                "low": low,
                "high": high,
                "by_far": [
                    {"far": far, "hits": int(each.hits[-1]), "hit_rate": float(each.hits[-1] / each.trials)}
                    for far, each in by_far
                    if each is not None
                ],
                "steps": list(cell.steps),
                "hit_rate_by_steps": [float(hits / found.trials) for hits in found.hits],
                "distance_by_steps": [float(d) for d in found.distances],
            }


def save(study: Transfer, folder: RunFolder) -> None:
    """Write ``transfer.json`` into the run's folder; it is whole or absent.

    Raises:
        OSError: With the file's name.
    """
    write_json(folder.path / "transfer.json", describe(study))


def verdicts(study: Transfer) -> Iterator[tuple[str, str, str, str, PairedDifference]]:
    """Surrogate, target, method, base and difference, wherever a base was run; white boxes left out."""
    for cell in study.cells:
        base = study.base(cell)
        for target in study.verifiers:
            compared = study.against_base(cell, target)
            if base is not None and compared is not None and target not in cell.surrogate.split("+"):
                yield cell.surrogate, target, cell.method, base.label, compared
