"""``fastadv transfer``: what is made on one network, held against the others."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import CATALOG, ClassifyAs, Goal, Impersonate, Linf, Recipe
from fastadv.attacks.change import level_note, norms
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.core.progress import Progress, silent
from fastadv.core.provenance import software
from fastadv.data import FaceSource, ManifestRow, RunFolder, face_id, to_uint8
from fastadv.engine import Engine, trace
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import PairedDifference, count_success, paired_difference, wilson
from fastadv.runs.embedding import embed
from fastadv.studies.transfer.plan import (
    BASES,
    Method,
    Verifier,
    check_plan,
    draw_images,
    members,
    negative_pairs,
)

_BLOCK = 64  # pairs that are attacked side by side, and written together
_BATCH = 16
_STRIDE = 10  # steps between two signs of life


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
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

    cell: Cell
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
class Transfer:
    """A study's findings.

    Attributes:
        verifiers: The networks with their thresholds, by name.
        pairs: Names of source and target image.
        clean: ``(M, N)`` cosines before the attacks.
        cells: One for every surrogate and method.
    """

    verifiers: Mapping[str, Verifier]
    pairs: tuple[tuple[str, str], ...]
    clean: NDArray[np.float32]
    cells: tuple[Cell, ...]

    def hits(self, cell: Cell, target: str, step: int = -1) -> NDArray[np.bool_]:
        """``(N,)`` whether the network accepts each pair: ``d(F(x_adv), F(x_t)) < t_m`` (Zhong and Deng, eq. 14)."""
        place = list(self.verifiers).index(target)
        return np.asarray(cell.similarity[step, place] >= self.verifiers[target].threshold)

    def met(self, target: str) -> NDArray[np.bool_]:
        """``(N,)`` whether the network accepts each clean pair: only pairs that no network does are taken."""
        place = list(self.verifiers).index(target)
        return np.asarray(self.clean[place] >= self.verifiers[target].threshold)

    def hit_rate(self, cell: Cell, target: str, step: int = -1) -> float:
        """The share of them."""
        return float(self.hits(cell, target, step).mean())

    def base(self, cell: Cell) -> Base | None:
        """What this cell is compared with: the method without what it adds, on the same surrogate after as many steps.

        A cell of that many steps, or one that was measured after as many: the steps of these methods do not depend on
        their number, so that an iterate is the result of the shorter attack. None where there is neither.
        """
        steps = cell.steps[-1]
        found = [c for c in self._bases(cell) if steps in c.steps]
        found.sort(key=lambda c: c.steps[-1] != steps)  # stable: a whole run first
        return Base(cell=found[0], place=found[0].steps.index(steps)) if found else None

    def _bases(self, cell: Cell) -> list[Cell]:
        """The base's cells on the same surrogate, whatever their steps."""
        wanted = BASES.get(cell.name)
        return [c for c in self.cells if c.surrogate == cell.surrogate and c.name == wanted]

    def against_base(self, cell: Cell, target: str) -> PairedDifference | None:
        """The two methods' hits on the same pairs after as many steps, or None where the base was not run so."""
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


def transfer(
    source: FaceSource,
    verifiers: Mapping[str, Verifier],
    *,
    surrogates: Sequence[str],
    methods: Sequence[Method],
    eps: float,
    steps: int,
    at: Sequence[int],
    pairs: int,
    images: int,
    folder: RunFolder,
    seed: int = 0,
    engine: Engine,
    progress: Progress = silent,
) -> Transfer:
    """Attack negative pairs on each surrogate by each method, and show the results to every network.

    Source and target images are of different people; a pair is taken when no network accepts it. The goal is that the
    surrogate accepts it; a method on logits aims at the surrogate's own class of the target image. A verdict is on
    the 8-bit image. What was finished before a kill is not done again: a block of 64 pairs at a time.

    Args:
        source: The faces.
        verifiers: The networks by name, the targets of all attacks.
        surrogates: Names of verifiers, or several with "+" between them (an ensemble of equal weights).
        methods: What to compare.
        eps: Radius of the L-infinity budget.
        steps: Of the iterative methods that do not say their own.
        at: Further numbers of steps after which the images are measured.
        pairs: How many negative pairs.
        images: How many sources, and as many targets, the pairs are drawn from.
        folder: Where images, rows and measurements go.
        seed: Of every random number.
        engine: How to run the attacks.
        progress: Told of every stage.

    Raises:
        ValueError: As ``check_plan``; there are not enough people or negative pairs.
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.

    Source:
        Zhong and Deng 2020, section IV-A.
    """
    models = {name: verifier.model for name, verifier in verifiers.items()}
    check_plan(models, surrogates=surrogates, methods=methods, eps=eps, steps=steps, at=at, pairs=pairs, images=images)
    note = level_note(Linf(eps))
    if note is not None:
        notify(note)
    from_, to = draw_images(source, images, seed=seed)
    rows = {name: embed(source, [*from_, *to], v.model, progress=progress) for name, v in verifiers.items()}
    accepted = np.zeros((images, images), bool)
    for name, verifier in verifiers.items():
        one, other = (torch.stack([rows[name][n] for n in names]) for names in (from_, to))
        accepted |= (one @ other.T).numpy() >= verifier.threshold
    chosen = negative_pairs(from_, to, accepted, pairs)
    targets = {name: torch.stack([rows[name][t] for _, t in chosen]) for name in verifiers}
    clean = [(torch.stack([rows[n][s] for s, _ in chosen]) * targets[n]).sum(1).numpy() for n in verifiers]
    study = _Study(
        source=source,
        verifiers=verifiers,
        pairs=chosen,
        targets=targets,
        eps=eps,
        steps=steps,
        at=tuple(at),
        folder=folder,
        seed=seed,
        engine=engine,
        progress=progress,
        before=dict(zip(verifiers, clean, strict=True)),
    )
    cells = tuple(study.cell(surrogate, method) for surrogate in surrogates for method in methods)
    folder.finish(study.order)
    return Transfer(verifiers=verifiers, pairs=tuple(chosen), clean=np.stack(clean), cells=cells)


class _Study:
    """The pairs, the networks that judge, and what is on disk."""

    def __init__(
        self,
        *,
        source: FaceSource,
        verifiers: Mapping[str, Verifier],
        pairs: Sequence[tuple[str, str]],
        targets: Mapping[str, Tensor],
        before: Mapping[str, NDArray[np.float32]],
        eps: float,
        steps: int,
        at: tuple[int, ...],
        folder: RunFolder,
        seed: int,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self._source, self._verifiers, self._pairs, self._targets = source, verifiers, pairs, targets
        self._before, self._eps, self._steps, self._at = before, eps, steps, at
        self._folder, self._seed, self._engine, self._progress = folder, seed, engine, progress
        self._judges = {name: prepare(v.model, precision="fp32") for name, v in verifiers.items()}
        self._software = software(next(iter(verifiers.values())).model.device)
        self.order: list[str] = []

    def cell(self, surrogate: str, method: Method) -> Cell:
        model, *others = members(surrogate, {name: v.model for name, v in self._verifiers.items()})
        recipe = method.recipe(eps=self._eps, steps=self._steps, others=others)
        last = recipe.attack.steps
        at = tuple(sorted({k for k in self._at if k < last} | {last}))
        blocks = []
        for begin in range(0, len(self._pairs), _BLOCK):
            part = slice(begin, min(begin + _BLOCK, len(self._pairs)))
            stage = (f"{surrogate}: {method.label}", begin // _BLOCK, -(-len(self._pairs) // _BLOCK))
            blocks.append(self._block(surrogate, method, recipe, model, at, part, stage))
        similarity = np.concatenate(blocks, axis=2)
        return Cell(
            surrogate=surrogate,
            method=method.label,
            name=method.name,
            rate=method.rate,
            steps=at,
            similarity=similarity,
        )

    def _block(
        self,
        surrogate: str,
        method: Method,
        recipe: Recipe,
        model: FaceModel,
        at: tuple[int, ...],
        part: slice,
        stage: tuple[str, int, int],
    ) -> NDArray[np.float32]:
        pairs = self._pairs[part]
        names = [f"{surrogate}/{method.label}/{s}__{t}".replace("+", "-and-") for s, t in pairs]
        names = ["/".join((*n.split("/")[:2], "+".join(n.split("/")[2:]))) for n in names]
        self.order.extend(names)
        file = self._folder.path / "cells" / surrogate / f"{method.label}-{part.start:06d}.npy"
        shape = (len(at), len(self._verifiers), len(pairs))
        done = _read_block(file, shape) if set(names) <= self._folder.done else None
        label, block, blocks = stage
        last = at[-1]
        if done is not None:
            self._progress(label, (block + 1) * last, blocks * last)
            return done
        sources = [self._source.unchanged(self._source.load(s)) for s, _ in pairs]
        images = torch.stack([face.image for face in sources])
        targets = torch.stack([self._source.load(t).image for _, t in pairs])
        goal = self._goal(recipe.name, surrogate, model, targets)
        alive = {*at, *range(_STRIDE, last, _STRIDE)}
        ids = [face_id(f"{s}__{t}") for s, t in pairs]
        measured = []
        final = images
        iterates = trace(recipe, goal, model, images, at=sorted(alive), seed=self._seed, ids=ids, engine=self._engine)
        for step, made in iterates:
            if step in at:
                measured.append(self._similarity(made, part))
                final = made
            self._progress(label, block * last + step, blocks * last)
        similarity = np.stack(measured).astype(np.float32)
        self._write(
            names, recipe, surrogate, images, final.cpu(), similarity[-1], part, [f.source_hash for f in sources]
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, similarity)
        write_atomically(file, buffer.getvalue())
        return similarity

    def _goal(self, name: str, surrogate: str, model: FaceModel, targets: Tensor) -> Goal:
        if CATALOG[name].level != "logits":
            return Impersonate(targets, threshold=self._verifiers[surrogate.split("+")[0]].threshold)
        judge = self._judges[surrogate.split("+")[0]]
        layout = torch.channels_last
        labels = fixed_batches(
            lambda x: judge.logits(x.contiguous(memory_format=layout)), targets.to(judge.device), _BATCH
        ).argmax(1)
        return ClassifyAs(labels.cpu())

    def _similarity(self, images: Tensor, part: slice) -> NDArray[np.float32]:
        """``(M, n)`` cosines with the targets, by the networks in float32."""
        found = []
        for name, judge in self._judges.items():
            ready = images.to(judge.device).contiguous(memory_format=torch.channels_last)
            rows = fixed_batches(lambda x, j=judge: j(x.contiguous(memory_format=torch.channels_last)), ready, _BATCH)  # type: ignore[misc]
            found.append((rows.cpu() * self._targets[name][part]).sum(1).numpy())
        return np.stack(found)

    def _write(
        self,
        names: Sequence[str],
        recipe: Recipe,
        surrogate: str,
        images: Tensor,
        final: Tensor,
        similarity: NDArray[np.float32],
        part: slice,
        hashes: Sequence[str],
    ) -> None:
        first = surrogate.split("+")[0]
        place, limit = list(self._verifiers).index(first), self._verifiers[first].threshold
        done = self._folder.done
        linf, l2 = norms(final, images, recipe.attack.budget)
        for k, name in enumerate(names):
            if name in done:
                continue
            success = bool(similarity[place, k] >= limit)
            row = ManifestRow(
                name=name,
                id=face_id("__".join(self._pairs[part][k])),
                goal="impersonate",
                target=self._pairs[part][k][1],
                attack=recipe.name,
                eps=self._eps,
                steps=recipe.attack.steps,
                ticks=recipe.attack.steps,
                success=success,
                success_float=None,  # the iterate before rounding is not measured
                linf=linf[k],
                l2=l2[k],
                score_before=float(self._before[first][part][k]),
                score_after=float(similarity[place, k]),
                metric="cosine",
                seed=self._seed,
                source_hash=hashes[k],
                target_hash=self._source.content_hash(self._pairs[part][k][1]),
                software=self._software,
                batch=self._engine.batch or 0,
            )
            self._folder.write(row, to_uint8(final[k]))


def _read_block(file: Any, shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """What an earlier call measured, or None where there is nothing whole."""
    try:
        found = np.load(file, allow_pickle=False)
    except Exception:  # of a damaged file: anything from ValueError to BadZipFile
        return None
    return found if isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32 else None


def describe(study: Transfer) -> dict[str, Any]:
    """The findings as plain JSON values: a hit rate with its interval, and a verdict, for every cell and network."""
    return {
        "pairs": len(study.pairs),
        "networks": {
            name: {
                "threshold_cosine": v.threshold,
                "threshold_distance": v.distance,
                "accuracy_at_threshold": v.accuracy,
                "mean_clean_distance": float(np.sqrt(np.maximum(0, 2 - 2 * study.clean[k])).mean()),
            }
            for k, (name, v) in enumerate(study.verifiers.items())
        },
        "cells": [_described(study, cell, name) for cell in study.cells for name in study.verifiers],
        "notices": list(study.notices()),
    }


def _described(study: Transfer, cell: Cell, target: str) -> dict[str, Any]:
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
        "steps": list(cell.steps),
        "hit_rate_by_steps": [study.hit_rate(cell, target, k) for k in range(len(cell.steps))],
        "distance_by_steps": [float(d) for d in cell.distance[:, place].mean(1)],
        "base": None if base is None else base.label,
        "base_steps": None if base is None else base.steps,
        "against_base": None
        if compared is None
        else {
            "difference": compared.difference,
            "low": compared.low,
            "high": compared.high,
            "p": compared.p,
            "verdict": compared.verdict,
        },
    }


def save(study: Transfer, folder: RunFolder) -> None:
    """Write ``transfer.json`` into the run's folder; it is whole or absent.

    Raises:
        OSError: With the file's name.
    """
    text = json.dumps(describe(study), indent=1, sort_keys=True)
    write_atomically(folder.path / "transfer.json", text.encode() + b"\n")


def verdicts(study: Transfer) -> Iterator[tuple[str, str, str, str, PairedDifference]]:
    """Surrogate, target, method, base and difference, wherever a base was run; white boxes left out."""
    for cell in study.cells:
        base = study.base(cell)
        for target in study.verifiers:
            compared = study.against_base(cell, target)
            if base is not None and compared is not None and target not in cell.surrogate.split("+"):
                yield cell.surrogate, target, cell.method, base.label, compared
