"""``fastadv transfer --untargeted``: pairs with one attacked image, judged by networks that it was not made on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import CATALOG, Evade, Goal, Linf, Recipe
from fastadv.attacks.change import level_notes, norms
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import write_json
from fastadv.core.notices import notify
from fastadv.core.provenance import software
from fastadv.core.resolution import measurable, notes_of
from fastadv.data import Face, FaceSource, ManifestRow, Pair, RunFolder, face_id, read_image, to_tensor, to_uint8
from fastadv.models import FaceModel, prepare
from fastadv.recognition import auc, eer, tar_at_far
from fastadv.runs.embedding import embed, names_of, outputs
from fastadv.runs.production import Order, produce
from fastadv.runs.work import Work
from fastadv.studies.transfer.plan import UNIVERSAL, Method, Universal, check_once
from fastadv.surrogates.gd_uap import RangePrior, gd_uap

_BATCH = 16
_BLOCK = 256  # images that are in memory together
_FAR = 1e-2
_OWN = 0.0  # the cosine with its own clean embedding below which an attacked image counts as a success
_PRIOR = 64  # faces that the range prior is taken of


@dataclass(frozen=True, kw_only=True, eq=False)
class Untargeted:
    """Scores of the same pairs, clean and attacked.

    Attributes:
        networks: Names of those that judge.
        surrogate: Name of the one that was attacked.
        methods: Labels.
        same: ``(P,)`` whether a pair shows one person.
        scores: ``(1 + methods, networks, P)`` cosines; the first is clean.
    """

    networks: tuple[str, ...]
    surrogate: str
    methods: tuple[str, ...]
    same: NDArray[np.bool_]
    scores: NDArray[np.float32]


def halve(pairs: Sequence[Pair], *, seed: int) -> tuple[list[str], list[tuple[Pair, str]]]:
    """Choose half of the images for an attack, and the pairs of which at most one image was chosen.

    Returns:
        The chosen names that occur in a remaining pair, and the remaining pairs, each with its attacked image or "".

    Source:
        Zhong and Deng 2020, section IV-F.
    """
    names = sorted(names_of(pairs))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    chosen = {names[k] for k in order[: len(names) // 2]}
    kept = [(p, [n for n in (p.first, p.second) if n in chosen]) for p in pairs]
    remaining = [(p, found[0] if found else "") for p, found in kept if len(found) < 2]
    used = {name for _, name in remaining if name}
    return sorted(used), remaining


def untargeted(
    source: FaceSource,
    pairs: Sequence[Pair],
    models: Mapping[str, FaceModel],
    *,
    surrogate: str,
    methods: Sequence[Method],
    eps: float,
    steps: int,
    work: Work,
) -> Untargeted:
    """Attack half of the images away from their own embeddings, and verify the pairs with every network.

    Each iterative method starts at a random point of the ball: at the image itself the gradient of the distance to its
    own embedding is zero. GD-UAP adds one perturbation to all images.

    Args:
        source: The faces.
        pairs: What to verify.
        models: The networks that judge, by name.
        surrogate: The one that is attacked.
        methods: What to compare.
        eps: Radius of the L-infinity budget.
        steps: Of the iterative methods that do not say their own.
        work: How images are made, and where they go.

    Raises:
        ValueError: As ``check_plan``.
        ImageError, AlignmentError: A face cannot be read.
        OSError: An image cannot be written.
    """
    check_plan(models, surrogate=surrogate, methods=methods, eps=eps, steps=steps)
    for note in level_notes([Linf(eps)]):
        notify(note)
    chosen, remaining = halve(pairs, seed=work.seed)
    names = names_of(p for p, _ in remaining)
    clean = {name: embed(source, names, model, progress=work.progress) for name, model in models.items()}
    judges = {name: prepare(model, precision="fp32") for name, model in models.items()}
    scores = [[_scores(remaining, clean[name], {}) for name in models]]
    labels, finished = [], []
    for method in methods:
        label = method.label
        labels.append(label)
        orders = [Order(name=f"{label}/{name}", source=name) for name in chosen]
        finished += [order.name for order in orders]
        if isinstance(method, Universal):
            _universal(orders, source, models[surrogate], work, eps=eps, steps=method.steps)
        else:
            recipe, model = _away(method, eps=eps, steps=steps), models[surrogate]
            produce(orders, _away_from_itself, source, recipe, model, work, goal_name="evade", stage=label)
        attacked = {name: _embedded(judge, work.into, orders) for name, judge in judges.items()}
        scores.append([_scores(remaining, clean[name], attacked[name]) for name in models])
    work.into.finish(finished)
    same = np.array([p.same for p, _ in remaining])
    return Untargeted(
        networks=tuple(models),
        surrogate=surrogate,
        methods=tuple(labels),
        same=same,
        scores=np.asarray(scores, np.float32),
    )


def check_plan(
    models: Mapping[str, FaceModel], *, surrogate: str, methods: Sequence[Method], eps: float, steps: int
) -> None:
    """Refuse a comparison that could not be finished, before anything is embedded.

    Raises:
        ValueError: The surrogate is not among the networks, a method is given twice, needs labels, has no random
            start, or does not take what is given.
    """
    check_one_of("surrogate", surrogate, models)
    check_once("method", [m.label for m in methods])
    for method in methods:
        if not isinstance(method, Universal):
            _away(method, eps=eps, steps=steps)


def _away(method: AttackSpec, *, eps: float, steps: int) -> Recipe:
    """The method with a random start; an image is its own reference."""
    if CATALOG[method.name].level == "logits":
        raise ArgumentError(
            f"method: expected one on embeddings for --untargeted, got {method.name!r}, which works on logits"
        )
    recipe = method.recipe(eps=eps, steps=steps)
    attack: Any = recipe.attack
    if not getattr(attack, "ends_at_last", False):
        raise ArgumentError(f"method: expected one with a random start for --untargeted, got {method.name!r}")
    return replace(recipe, attack=replace(attack, random_start=True))


def _away_from_itself(order: Order, face: Face) -> Goal:
    return Evade(threshold=_OWN)


def _universal(
    orders: Sequence[Order], source: FaceSource, model: FaceModel, work: Work, *, eps: float, steps: int
) -> None:
    """GD-UAP with the range of the faces as its prior: one perturbation, added to every image."""
    folder, done = work.into, work.into.done
    pending = [order for order in orders if order.name not in done]
    if not pending:
        return
    some = torch.stack([source.load(order.source).image for order in orders[:_PRIOR]])
    means, stds = some.mean((0, 2, 3)).tolist(), some.std((0, 2, 3)).tolist()
    prior = RangePrior(mean=(means[0], means[1], means[2]), std=(stds[0], stds[1], stds[2]))
    found = gd_uap(
        model,
        eps=eps,
        seed=work.seed,
        steps=steps,
        prior=prior,
        on_step=lambda k, _: work.progress(UNIVERSAL, k, steps),
    )
    budget, delta, made_with = Linf(eps), found.delta.cpu(), software(model.device)
    judge = prepare(model, precision="fp32")
    for begin in range(0, len(pending), _BATCH // 2):
        block = pending[begin : begin + _BATCH // 2]
        faces = [source.unchanged(source.load(order.source)) for order in block]
        images = torch.stack([face.image for face in faces])
        made = budget.round8((images + delta).clamp(0, 1), images)
        clean, attacked = outputs(judge, torch.cat([images, made]), judge, batch=_BATCH).split(len(block))
        before, after = (clean * clean).sum(1).tolist(), (clean * attacked).sum(1).tolist()
        linf, l2 = (each.tolist() for each in norms(made, images, budget))
        for k, (order, face) in enumerate(zip(block, faces, strict=True)):
            row = ManifestRow(
                name=order.name,
                id=face_id(order.source),
                goal="evade",
                target="",
                attack=UNIVERSAL,
                eps=eps,
                steps=steps,
                ticks=0,
                success=after[k] < _OWN,
                success_float=None,  # only the written images are measured
                linf=linf[k],
                l2=l2[k],
                score_before=before[k],
                score_after=after[k],
                metric="cosine",
                seed=work.seed,
                source_hash=face.source_hash,
                flags="universal",
                software=made_with,
            )
            folder.write(row, to_uint8(made[k]))


def _embedded(judge: FaceModel, folder: RunFolder, orders: Sequence[Order]) -> dict[str, Tensor]:
    """Embeddings of the written images, by the names of their sources; a bounded number is in memory."""
    found: dict[str, Tensor] = {}
    for begin in range(0, len(orders), _BLOCK):
        block = orders[begin : begin + _BLOCK]
        images = torch.stack([to_tensor(read_image(folder.image_path(order.name))) for order in block])
        found.update(zip((order.source for order in block), outputs(judge, images, judge, batch=_BATCH), strict=True))
    return found


def _scores(
    remaining: Sequence[tuple[Pair, str]], clean: Mapping[str, Tensor], attacked: Mapping[str, Tensor]
) -> NDArray[np.float32]:
    """Cosines of the pairs, with the attacked image where there is one."""

    def row(name: str, changed: str) -> Tensor:
        return attacked[name] if attacked and name == changed else clean[name]

    first = torch.stack([row(p.first, changed) for p, changed in remaining])
    second = torch.stack([row(p.second, changed) for p, changed in remaining])
    return np.asarray((first * second).sum(1).numpy())


def describe(found: Untargeted) -> dict[str, Any]:
    """AUC, equal error rate and TAR at FAR 1e-2 of every network, clean and by method, as plain JSON values.

    A TAR that so many pairs cannot show is None, with a sentence in ``notes``.
    """
    rows = []
    negatives = int((~found.same).sum())
    shown = measurable(_FAR, negatives)
    for k, method in enumerate(("clean", *found.methods)):
        for m, network in enumerate(found.networks):
            scores = found.scores[k, m]
            rows.append(
                {
                    "method": method,
                    "network": network,
                    "white_box": network == found.surrogate,
                    "auc": auc(scores, found.same),
                    "eer": eer(scores, found.same)[0],
                    "tar_at_far_1e2": tar_at_far(scores, found.same, _FAR) if shown else None,
                }
            )
    notes = notes_of({"TAR at FAR 1e-2": _FAR}, negatives, "negative pairs")
    return {"surrogate": found.surrogate, "pairs": len(found.same), "rows": rows, "notes": list(notes)}


def save(found: Untargeted, folder: RunFolder) -> None:
    """Write ``untargeted.json``, with the scores; it is whole or absent.

    Raises:
        OSError: With the file's name.
    """
    scores = [[[round(float(v), 6) for v in row] for row in method] for method in found.scores]
    plain = {**describe(found), "networks": list(found.networks), "methods": list(found.methods)}
    plain.update(same=[bool(v) for v in found.same], scores=scores)
    write_json(folder.path / "untargeted.json", plain, indent=None)
