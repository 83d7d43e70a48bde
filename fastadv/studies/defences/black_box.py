"""How sure a second network is of the right answer, on the images that were generated on the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.attacks.pair_classifier import same_probability
from fastadv.core.errors import ArgumentError
from fastadv.data import FaceSource, ManifestRow, Pair, read_image, to_tensor
from fastadv.defences import Defence
from fastadv.models import FaceModel, prepare
from fastadv.recognition import cosine_scores, evaluate
from fastadv.runs.embedding import embed, names_of, outputs
from fastadv.runs.work import Work
from fastadv.studies.defences.generated import gained
from fastadv.studies.defences.kept import Arrays, kept, slug

_BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Confidences:
    """The black box behind one defence, under one attack.

    Attributes:
        defence: Its label.
        attack: Its label; None: clean pairs.
        values: ``(P,)`` the confidence in the right answer.
        clean: ``(P,)`` the same without the attack, behind the same defence.
        counted: ``(P,)`` bool, the pairs of the means: those whose image succeeds on the network that it was generated
            on and whose clean one does not; all without an attack.
    """

    defence: str
    attack: str | None
    values: NDArray[np.float64]
    clean: NDArray[np.float64]
    counted: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlackBox:
    """A network that attacks know nothing of.

    Attributes:
        network: Its name.
        threshold: The cosine of its equal error rate on the clean pairs, without a defence.
        cells: Clean pairs and every attack, behind no defence and behind every input defence.
    """

    network: str
    threshold: float
    cells: tuple[Confidences, ...]


def check_black_box(model: FaceModel, black_box: FaceModel) -> None:
    """Refuse a network that takes other images.

    Raises:
        ValueError: It does.
    """
    if black_box.image_shape != model.image_shape:
        raise ArgumentError(
            f"black-box: expected a network of images {model.image_shape} like {model.name}, got {black_box.name} of "
            f"{black_box.image_shape}"
        )


def confidences(
    source: FaceSource,
    pairs: Sequence[Pair],
    black_box: FaceModel,
    work: Work,
    *,
    secret: int,
    defences: Sequence[tuple[str, Defence | None]],
    attacks: Sequence[tuple[str, list[ManifestRow], list[Path]]],
) -> BlackBox:
    r"""Measure the confidence in the right answer, on clean and on attacked pairs.

    With d the distance of a pair's embeddings and t the black box's threshold, ``P(same)`` is that of
    :class:`fastadv.attacks.PairClassifier`; the confidence is ``P(same)`` for pairs of one person and
    ``1 - P(same)`` for pairs of two. Both images pass the defence. Cosines are kept in the study's folder.

    Args:
        source: The faces.
        pairs: What to compare.
        black_box: The network.
        work: Its folder is the study's.
        secret: The defender's seed.
        defences: By label, no defence first.
        attacks: By label: rows and files of the first image of each pair, attacked on another network.

    Raises:
        ImageError, AlignmentError, OSError: A face cannot be read, or cosines cannot be written.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", table 3, with a commercial service as the black box.
    """
    same = np.array([pair.same for pair in pairs])
    names, threshold = names_of(pairs), 0.0
    cells: list[Confidences] = []

    def confident(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        distances = torch.from_numpy(np.sqrt(np.maximum(0.0, 2 - 2 * cosines)))
        one = same_probability(distances, math.sqrt(2 - 2 * threshold)).numpy()
        return np.asarray(np.where(same, one, 1 - one))

    for label, defence in defences:
        network = black_box if defence is None else defence.wrap(black_box, seed=secret)
        judge = prepare(network, precision="fp32")

        def rows_of(network: FaceModel = network) -> Arrays:
            rows = embed(source, names, network, progress=work.progress)
            return {"rows": torch.stack([rows[name] for name in names]).numpy()}

        place = Path("black-box", slug(label))
        held = kept(work.into, place / "clean", ("rows",), len(names), rows_of)["rows"]
        rows = dict(zip(names, held, strict=True))
        first, second = (np.stack([rows[getattr(p, side)] for p in pairs]) for side in ("first", "second"))
        scores = cosine_scores(first, second)
        if defence is None:
            threshold = evaluate(scores, same).eer_threshold
        clean = confident(scores)
        everything = np.ones(len(pairs), bool)
        cells.append(Confidences(defence=label, attack=None, values=clean, clean=clean, counted=everything))
        for attack, made, files in attacks:

            def scores_of(
                files: list[Path] = files, judge: FaceModel = judge, second: NDArray[np.float32] = second
            ) -> Arrays:
                parts = [files[k : k + _BATCH] for k in range(0, len(files), _BATCH)]
                images = (torch.stack([to_tensor(read_image(file)) for file in part]) for part in parts)
                attacked = torch.cat([outputs(judge, each, judge, batch=_BATCH) for each in images])
                return {"scores": cosine_scores(attacked, second)}

            found = kept(work.into, place / slug(attack), ("scores",), len(pairs), scores_of)["scores"]
            cells.append(
                Confidences(defence=label, attack=attack, values=confident(found), clean=clean, counted=gained(made))
            )
    return BlackBox(network=black_box.name, threshold=threshold, cells=tuple(cells))
