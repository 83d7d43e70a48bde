"""``fastadv transfer``: what is made on one network, held against the others."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import CATALOG, ClassifyAs, Goal, Impersonate, Linf, Recipe
from fastadv.attacks.change import level_notes, norms
from fastadv.attacks.spec import AttackSpec
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.core.provenance import software
from fastadv.data import Face, FaceSource, ManifestRow, face_id, to_uint8
from fastadv.data.images import encode_png
from fastadv.engine import Engine, trace
from fastadv.models import FaceModel, prepare
from fastadv.runs.embedding import embed, outputs
from fastadv.runs.work import Work
from fastadv.runs.workers import each, fitted
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
        work: How images are made; its folder holds images, rows and measurements. Its workers make a block each.

    Raises:
        ValueError: As ``check_plan``; there are not enough people or negative pairs.
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.

    Source:
        Zhong and Deng 2020, section IV-A.
    """
    models = {name: verifier.model for name, verifier in verifiers.items()}
    check_plan(models, settings)
    for note in level_notes([Linf(settings.eps)]):
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
        seed=work.seed,
        engine=work.engine if work.workers is None else fitted(work.engine),
        before=dict(zip(verifiers, clean, strict=True)),
    )
    cells = _cells(study, work)
    work.into.finish([name for block in study.blocks for name in study.names(block)])
    return Transfer(
        verifiers=verifiers, pairs=tuple(chosen), clean=np.stack(clean), cells=cells, sets=dict(settings.sets)
    )


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Pairs that are attacked side by side by a method on a surrogate, from the one at ``begin``."""

    surrogate: str
    method: AttackSpec
    begin: int

    @property
    def label(self) -> str:
        """Of the progress."""
        return f"{self.surrogate}: {self.method.label}"

    @property
    def part(self) -> slice:
        """The pairs."""
        return slice(self.begin, self.begin + _BLOCK)

    def file(self, folder: Path) -> Path:
        """What was measured."""
        return folder / "cells" / self.surrogate / f"{self.method.label}-{self.begin:06d}.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Way:
    """A method on a surrogate, whose first network is attacked, and the steps after which its images are measured."""

    first: str
    recipe: Recipe
    model: FaceModel
    at: tuple[int, ...]


_Made = tuple[list[ManifestRow], list[bytes], NDArray[np.float32]]
"""Of a block: rows, PNG files, and the cosines with the targets ``(steps, M, n)``."""


def _cells(study: _TransferStudy, work: Work) -> tuple[TransferCell, ...]:
    """Every block that is not on disk is made, here or by workers, and written here."""
    folder, done, counted = work.into, work.into.done, Counter[str]()
    total = Counter(block.label for block in study.blocks)
    found: dict[_Block, NDArray[np.float32]] = {}

    def tell(block: _Block, step: int) -> None:
        last = study.way(block).at[-1]
        work.progress(block.label, counted[block.label] * last + step, total[block.label] * last)

    def keep(block: _Block, similarity: NDArray[np.float32]) -> None:
        found[block] = similarity
        tell(block, study.way(block).at[-1])
        counted[block.label] += 1

    missing = []
    for block in study.blocks:
        names = study.names(block)
        kept = _read_block(block.file(folder.path), (len(study.way(block).at), len(study.verifiers), len(names)))
        if kept is not None and done.issuperset(names):
            keep(block, kept)
        else:
            missing.append(block)
    make = study if work.workers else partial(study, tell=tell)
    for place, (rows, images, similarity) in each(work.workers, make, missing):
        block = missing[place]
        for row, image in zip(rows, images, strict=True):
            if row.name not in done:
                folder.write(row, image)
        file, buffer = block.file(folder.path), io.BytesIO()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(buffer, similarity)
        write_atomically(file, buffer.getvalue())
        keep(block, similarity)
    return tuple(
        TransferCell(
            surrogate=first.surrogate,
            method=first.method.label,
            name=first.method.name,
            rate=first.method.rate,
            steps=study.way(first).at,
            similarity=np.concatenate([found[b] for b in study.blocks if b.label == first.label], axis=2),
        )
        for first in study.blocks
        if not first.begin
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _TransferStudy:
    """The pairs and the networks that judge: all that a block depends on."""

    source: FaceSource
    verifiers: Mapping[str, Verifier]
    pairs: Sequence[tuple[str, str]]
    targets: Mapping[str, Tensor]
    before: Mapping[str, NDArray[np.float32]]
    settings: TransferSettings
    seed: int
    engine: Engine

    @cached_property
    def judges(self) -> dict[str, FaceModel]:
        """The networks, ready to evaluate in float32."""
        return {name: prepare(v.model, precision="fp32") for name, v in self.verifiers.items()}

    @cached_property
    def software(self) -> str:
        """What makes the images."""
        return software(next(iter(self.verifiers.values())).model.device)

    @cached_property
    def blocks(self) -> list[_Block]:
        """In the order of the manifest."""
        return [
            _Block(surrogate=surrogate, method=method, begin=begin)
            for surrogate in self.settings.surrogates
            for method in self.settings.methods
            for begin in range(0, len(self.pairs), _BLOCK)
        ]

    def way(self, block: _Block) -> _Way:
        """How the images of a block are made."""
        names, method = block.surrogate, block.method
        model, *others = members(names, {name: v.model for name, v in self.verifiers.items()})
        recipe = method.recipe(eps=self.settings.eps, steps=self.settings.steps, others=others)
        last = recipe.steps
        at = tuple(sorted({k for k in self.settings.at if k < last} | {last}))
        return _Way(first=names.split("+")[0], recipe=recipe, model=model, at=at)

    def names(self, block: _Block) -> list[str]:
        """Of the images of a block."""
        pairs = self.pairs[block.part]
        names = [f"{block.surrogate}/{block.method.label}/{s}__{t}".replace("+", "-and-") for s, t in pairs]
        return ["/".join((*n.split("/")[:2], "+".join(n.split("/")[2:]))) for n in names]

    def __call__(self, block: _Block, tell: Callable[[_Block, int], None] = lambda block, step: None) -> _Made:
        """Attack the pairs of a block, and measure the images; ``tell`` is called after some steps."""
        way, part = self.way(block), block.part
        pairs, last = self.pairs[part], way.at[-1]
        faces = [self.source.unchanged(self.source.load(s)) for s, _ in pairs]
        images = torch.stack([face.image for face in faces])
        goal = self._goal(way, torch.stack([self.source.load(t).image for _, t in pairs]))
        alive = sorted({*way.at, *range(_STRIDE, last, _STRIDE)})
        ids = [face_id(f"{s}__{t}") for s, t in pairs]
        seed, engine = self.seed, self.engine
        measured, final = [], images
        for step, made in trace(way.recipe, goal, way.model, images, at=alive, seed=seed, ids=ids, engine=engine):
            if step in way.at:
                measured.append(self._similarity(made, part))
                final = made
            tell(block, step)
        similarity, final = np.stack(measured).astype(np.float32), final.cpu()
        rows = self._rows(way, self.names(block), part, faces, final, similarity[-1])
        return rows, [encode_png(to_uint8(image)) for image in final], similarity

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
            found.append((rows * self.targets[name][part].cpu()).sum(1).numpy())  # a worker has all on its device
        return np.stack(found)

    def _rows(
        self,
        way: _Way,
        names: Sequence[str],
        part: slice,
        faces: Sequence[Face],
        final: Tensor,
        similarity: NDArray[np.float32],
    ) -> list[ManifestRow]:
        recipe, pairs = way.recipe, self.pairs[part]
        place, limit = list(self.verifiers).index(way.first), self.verifiers[way.first].threshold
        linf, l2 = (each.tolist() for each in norms(final, torch.stack([face.image for face in faces]), recipe.budget))
        return [
            ManifestRow(
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
                seed=self.seed,
                source_hash=faces[k].source_hash,
                target_hash=self.source.content_hash(pairs[k][1]),
                software=self.software,
                batch=self.engine.batch or 0,
            )
            for k, name in enumerate(names)
        ]


def _read_block(file: Any, shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """What an earlier call measured, or None where there is nothing whole."""
    try:
        found = np.load(file, allow_pickle=False)
    except Exception:  # of a damaged file: anything from ValueError to BadZipFile
        return None
    return found if isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32 else None
