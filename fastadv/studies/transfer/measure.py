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
from fastadv.data import Face, FaceSource, ManifestRow, face_id, to_uint8
from fastadv.engine import trace
from fastadv.models import FaceModel, prepare
from fastadv.runs.embedding import embed, outputs
from fastadv.runs.work import Work
from fastadv.studies.transfer.plan import TransferSettings, Verifier, check_plan, draw_images, members, negative_pairs
from fastadv.studies.transfer.results import Transfer, TransferCell

_BLOCK = 64  # pairs that are attacked side by side, and written together
_BATCH = 16
_STRIDE = 10  # steps between two signs of life


def transfer(source: FaceSource, verifiers: Mapping[str, Verifier], settings: TransferSettings, work: Work) -> Transfer:
    """Attack negative pairs on each surrogate by each method, and show the results to every network.

    Source and target images are of different people; a pair is taken when no network accepts it at any of its
    thresholds. The goal is that the surrogate accepts it, at the lowest; a method on logits aims at the surrogate's own
    class of the target image. A verdict is on the 8-bit image. What was finished before a kill is not done again: a
    block of 64 pairs at a time.

    Args:
        source: The faces.
        verifiers: The networks by name, the targets of all attacks.
        settings: What to attack, by which methods and how.
        work: How images are made; its folder holds images, rows and measurements.

    Raises:
        ValueError: As ``check_plan``; there are not enough people or negative pairs.
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.

    Source:
        Zhong and Deng 2020, section IV-A.
    """
    models = {name: verifier.model for name, verifier in verifiers.items()}
    check_plan(models, settings)
    note = level_note(Linf(settings.eps))
    if note is not None:
        notify(note)
    from_, to = draw_images(source, settings.images, seed=work.seed)
    rows = {name: embed(source, [*from_, *to], v.model, progress=work.progress) for name, v in verifiers.items()}
    accepted = np.zeros((settings.images, settings.images), bool)
    for name, verifier in verifiers.items():
        one, other = (torch.stack([rows[name][n] for n in names]) for names in (from_, to))
        accepted |= (one @ other.T).numpy() >= verifier.threshold
    chosen = negative_pairs(from_, to, accepted, settings.pairs)
    targets = {name: torch.stack([rows[name][t] for _, t in chosen]) for name in verifiers}
    clean = [(torch.stack([rows[n][s] for s, _ in chosen]) * targets[n]).sum(1).numpy() for n in verifiers]
    study = _TransferStudy(
        source=source,
        verifiers=verifiers,
        pairs=chosen,
        targets=targets,
        settings=settings,
        work=work,
        before=dict(zip(verifiers, clean, strict=True)),
    )
    cells = tuple(study.cell(surrogate, method) for surrogate in settings.surrogates for method in settings.methods)
    work.into.finish(study.order)
    return Transfer(
        verifiers=verifiers, pairs=tuple(chosen), clean=np.stack(clean), cells=cells, sets=dict(settings.sets)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Way:
    """A method on a surrogate, whose first network is attacked, and the steps after which its images are measured."""

    surrogate: str
    method: AttackSpec
    recipe: Recipe
    model: FaceModel
    at: tuple[int, ...]

    @property
    def first(self) -> str:
        """The name of the surrogate's first network, whose threshold decides."""
        return self.surrogate.split("+")[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _TransferStudy:
    """The pairs, the networks that judge, and what is on disk."""

    source: FaceSource
    verifiers: Mapping[str, Verifier]
    pairs: Sequence[tuple[str, str]]
    targets: Mapping[str, Tensor]
    before: Mapping[str, NDArray[np.float32]]
    settings: TransferSettings
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
        recipe = method.recipe(eps=self.settings.eps, steps=self.settings.steps, others=others)
        last = recipe.steps
        at = tuple(sorted({k for k in self.settings.at if k < last} | {last}))
        way = _Way(surrogate=surrogate, method=method, recipe=recipe, model=model, at=at)
        blocks = [self._block(way, begin) for begin in range(0, len(self.pairs), _BLOCK)]
        return TransferCell(
            surrogate=surrogate,
            method=method.label,
            name=method.name,
            rate=method.rate,
            steps=at,
            similarity=np.concatenate(blocks, axis=2),
        )

    def _block(self, way: _Way, begin: int) -> NDArray[np.float32]:
        part = slice(begin, min(begin + _BLOCK, len(self.pairs)))
        pairs, label, last = self.pairs[part], way.method.label, way.at[-1]
        names = [f"{way.surrogate}/{label}/{s}__{t}".replace("+", "-and-") for s, t in pairs]
        names = ["/".join((*n.split("/")[:2], "+".join(n.split("/")[2:]))) for n in names]
        self.order.extend(names)
        file = self.work.into.path / "cells" / way.surrogate / f"{label}-{begin:06d}.npy"
        done = _read_block(file, (len(way.at), len(self.verifiers), len(pairs)))

        def tell(step: int) -> None:
            blocks = -(-len(self.pairs) // _BLOCK)
            self.work.progress(f"{way.surrogate}: {label}", begin // _BLOCK * last + step, blocks * last)

        if done is not None and set(names) <= self.work.into.done:
            tell(last)
            return done
        faces = [self.source.unchanged(self.source.load(s)) for s, _ in pairs]
        images = torch.stack([face.image for face in faces])
        goal = self._goal(way, torch.stack([self.source.load(t).image for _, t in pairs]))
        alive = sorted({*way.at, *range(_STRIDE, last, _STRIDE)})
        ids = [face_id(f"{s}__{t}") for s, t in pairs]
        seed, engine = self.work.seed, self.work.engine
        measured, final = [], images
        for step, made in trace(way.recipe, goal, way.model, images, at=alive, seed=seed, ids=ids, engine=engine):
            if step in way.at:
                measured.append(self._similarity(made, part))
                final = made
            tell(step)
        similarity = np.stack(measured).astype(np.float32)
        self._write(way, names, part, faces, final.cpu(), similarity[-1])
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, similarity)
        write_atomically(file, buffer.getvalue())
        return similarity

    def _goal(self, way: _Way, targets: Tensor) -> Goal:
        if CATALOG[way.recipe.name].level != "logits":
            return Impersonate(targets, threshold=self.verifiers[way.first].threshold)
        judge = self.judges[way.first]
        return ClassifyAs(outputs(judge.logits, targets, judge, batch=_BATCH).argmax(1))

    def _similarity(self, images: Tensor, part: slice) -> NDArray[np.float32]:
        """``(M, n)`` cosines with the targets, by the networks in float32."""
        found = []
        for name, judge in self.judges.items():
            rows = outputs(judge, images, judge, batch=_BATCH)
            found.append((rows * self.targets[name][part]).sum(1).numpy())
        return np.stack(found)

    def _write(
        self,
        way: _Way,
        names: Sequence[str],
        part: slice,
        faces: Sequence[Face],
        final: Tensor,
        similarity: NDArray[np.float32],
    ) -> None:
        recipe, pairs = way.recipe, self.pairs[part]
        place, limit = list(self.verifiers).index(way.first), self.verifiers[way.first].threshold
        done = self.work.into.done
        linf, l2 = (each.tolist() for each in norms(final, torch.stack([face.image for face in faces]), recipe.budget))
        for k, name in enumerate(names):
            if name in done:
                continue
            row = ManifestRow(
                name=name,
                id=face_id("__".join(pairs[k])),
                goal="impersonate",
                target=pairs[k][1],
                attack=recipe.name,
                eps=self.settings.eps,
                steps=recipe.steps,
                ticks=recipe.steps,
                success=bool(similarity[place, k] >= limit),
                success_float=None,  # the iterate before rounding is not measured
                linf=linf[k],
                l2=l2[k],
                score_before=float(self.before[way.first][part][k]),
                score_after=float(similarity[place, k]),
                metric="cosine",
                seed=self.work.seed,
                source_hash=faces[k].source_hash,
                target_hash=self.source.content_hash(pairs[k][1]),
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
