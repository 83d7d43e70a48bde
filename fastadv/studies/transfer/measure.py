"""``fastadv transfer``: what is made on one network, held against the others."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import CATALOG, ClassifyAs, Goal, Impersonate, Linf, Recipe
from fastadv.attacks.change import level_note, norms
from fastadv.attacks.spec import AttackSpec
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.core.provenance import software
from fastadv.data import FaceSource, ManifestRow, face_id, to_uint8
from fastadv.engine import trace
from fastadv.models import FaceModel, prepare
from fastadv.runs.embedding import embed, outputs
from fastadv.runs.work import Work
from fastadv.studies.transfer.plan import (
    Verifier,
    check_plan,
    draw_images,
    members,
    negative_pairs,
)
from fastadv.studies.transfer.results import Transfer, TransferCell

_BLOCK = 64  # pairs that are attacked side by side, and written together
_BATCH = 16
_STRIDE = 10  # steps between two signs of life


def transfer(
    source: FaceSource,
    verifiers: Mapping[str, Verifier],
    *,
    surrogates: Sequence[str],
    methods: Sequence[AttackSpec],
    eps: float,
    steps: int,
    at: Sequence[int],
    pairs: int,
    images: int,
    work: Work,
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
        work: How images are made; its folder holds images, rows and measurements.

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
    from_, to = draw_images(source, images, seed=work.seed)
    rows = {name: embed(source, [*from_, *to], v.model, progress=work.progress) for name, v in verifiers.items()}
    accepted = np.zeros((images, images), bool)
    for name, verifier in verifiers.items():
        one, other = (torch.stack([rows[name][n] for n in names]) for names in (from_, to))
        accepted |= (one @ other.T).numpy() >= verifier.threshold
    chosen = negative_pairs(from_, to, accepted, pairs)
    targets = {name: torch.stack([rows[name][t] for _, t in chosen]) for name in verifiers}
    clean = [(torch.stack([rows[n][s] for s, _ in chosen]) * targets[n]).sum(1).numpy() for n in verifiers]
    study = _TransferStudy(
        source=source,
        verifiers=verifiers,
        pairs=chosen,
        targets=targets,
        eps=eps,
        steps=steps,
        at=tuple(at),
        work=work,
        before=dict(zip(verifiers, clean, strict=True)),
    )
    cells = tuple(study.cell(surrogate, method) for surrogate in surrogates for method in methods)
    work.into.finish(study.order)
    return Transfer(verifiers=verifiers, pairs=tuple(chosen), clean=np.stack(clean), cells=cells)


@dataclass(frozen=True, kw_only=True, eq=False)
class _TransferStudy:
    """The pairs, the networks that judge, and what is on disk."""

    source: FaceSource
    verifiers: Mapping[str, Verifier]
    pairs: Sequence[tuple[str, str]]
    targets: Mapping[str, Tensor]
    before: Mapping[str, NDArray[np.float32]]
    eps: float
    steps: int
    at: tuple[int, ...]
    work: Work
    order: list[str] = field(default_factory=list)

    @cached_property
    def judges(self) -> dict[str, FaceModel]:
        """The networks, ready to evaluate in float32."""
        return {name: prepare(v.model, precision="fp32") for name, v in self.verifiers.items()}

    @cached_property
    def software(self) -> str:
        """What makes the images."""
        return software(next(iter(self.verifiers.values())).model.device)

    def cell(self, surrogate: str, method: AttackSpec) -> TransferCell:
        model, *others = members(surrogate, {name: v.model for name, v in self.verifiers.items()})
        recipe = method.recipe(eps=self.eps, steps=self.steps, others=others)
        last = recipe.attack.steps
        at = tuple(sorted({k for k in self.at if k < last} | {last}))
        blocks = []
        for begin in range(0, len(self.pairs), _BLOCK):
            part = slice(begin, min(begin + _BLOCK, len(self.pairs)))
            stage = (f"{surrogate}: {method.label}", begin // _BLOCK, -(-len(self.pairs) // _BLOCK))
            blocks.append(self._block(surrogate, method, recipe, model, at, part, stage))
        similarity = np.concatenate(blocks, axis=2)
        return TransferCell(
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
        method: AttackSpec,
        recipe: Recipe,
        model: FaceModel,
        at: tuple[int, ...],
        part: slice,
        stage: tuple[str, int, int],
    ) -> NDArray[np.float32]:
        pairs = self.pairs[part]
        names = [f"{surrogate}/{method.label}/{s}__{t}".replace("+", "-and-") for s, t in pairs]
        names = ["/".join((*n.split("/")[:2], "+".join(n.split("/")[2:]))) for n in names]
        self.order.extend(names)
        file = self.work.into.path / "cells" / surrogate / f"{method.label}-{part.start:06d}.npy"
        shape = (len(at), len(self.verifiers), len(pairs))
        done = _read_block(file, shape) if set(names) <= self.work.into.done else None
        label, block, blocks = stage
        last = at[-1]
        if done is not None:
            self.work.progress(label, (block + 1) * last, blocks * last)
            return done
        sources = [self.source.unchanged(self.source.load(s)) for s, _ in pairs]
        images = torch.stack([face.image for face in sources])
        targets = torch.stack([self.source.load(t).image for _, t in pairs])
        goal = self._goal(recipe.name, surrogate, model, targets)
        alive = {*at, *range(_STRIDE, last, _STRIDE)}
        ids = [face_id(f"{s}__{t}") for s, t in pairs]
        measured = []
        final = images
        iterates = trace(
            recipe, goal, model, images, at=sorted(alive), seed=self.work.seed, ids=ids, engine=self.work.engine
        )
        for step, made in iterates:
            if step in at:
                measured.append(self._similarity(made, part))
                final = made
            self.work.progress(label, block * last + step, blocks * last)
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
            return Impersonate(targets, threshold=self.verifiers[surrogate.split("+")[0]].threshold)
        judge = self.judges[surrogate.split("+")[0]]
        labels = outputs(judge.logits, targets, judge, batch=_BATCH).argmax(1)
        return ClassifyAs(labels)

    def _similarity(self, images: Tensor, part: slice) -> NDArray[np.float32]:
        """``(M, n)`` cosines with the targets, by the networks in float32."""
        found = []
        for name, judge in self.judges.items():
            rows = outputs(judge, images, judge, batch=_BATCH)
            found.append((rows * self.targets[name][part]).sum(1).numpy())
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
        place, limit = list(self.verifiers).index(first), self.verifiers[first].threshold
        done = self.work.into.done
        linf, l2 = norms(final, images, recipe.attack.budget)
        for k, name in enumerate(names):
            if name in done:
                continue
            success = bool(similarity[place, k] >= limit)
            row = ManifestRow(
                name=name,
                id=face_id("__".join(self.pairs[part][k])),
                goal="impersonate",
                target=self.pairs[part][k][1],
                attack=recipe.name,
                eps=self.eps,
                steps=recipe.attack.steps,
                ticks=recipe.attack.steps,
                success=success,
                success_float=None,  # the iterate before rounding is not measured
                linf=linf[k],
                l2=l2[k],
                score_before=float(self.before[first][part][k]),
                score_after=float(similarity[place, k]),
                metric="cosine",
                seed=self.work.seed,
                source_hash=hashes[k],
                target_hash=self.source.content_hash(self.pairs[part][k][1]),
                software=self.software,
                batch=self.work.engine.batch or 0,
            )
            self.work.into.write(row, to_uint8(final[k]))


def _read_block(file: Any, shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """What an earlier call measured, or None where there is nothing whole."""
    try:
        found = np.load(file, allow_pickle=False)
    except Exception:  # of a damaged file: anything from ValueError to BadZipFile
        return None
    return found if isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32 else None
