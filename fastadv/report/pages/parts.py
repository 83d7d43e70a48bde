"""From a run's rows to the parts of a report page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.attacks import CATALOG, by_name
from fastadv.attacks.options import options_of
from fastadv.core import text
from fastadv.data import ManifestRow
from fastadv.report.figures import roc_plot, similarity_plot
from fastadv.report.page import amplified
from fastadv.report.parts import Card, Facts, Picture, Plot, Shot, Tone
from fastadv.report.roc import Curve
from fastadv.runs import describe
from fastadv.runs.attack import met_before, source_name

Image = NDArray[np.uint8]
VERIFIED = ("cosine", "euclidean")
"""The metrics that compare two embeddings; other scores have no ROC."""
_SCORE_NAMES = {
    "cosine": "cosine similarity",
    "euclidean": "distance",
    "logit_margin": "logit margin",
    "feature_distance": "distance of features",
    "template_margin": "margin of the nearest template",
    "probability_same": "probability of one person",
}
_GENUINE = {"evade": True, "impersonate": False}


def score_name(metric: str) -> str:
    """What the axis of a score is called."""
    return _SCORE_NAMES.get(metric, metric)


def oriented(scores: Sequence[float], metric: str) -> NDArray[np.float64]:
    """Scores of which a higher one means more alike."""
    return (-1.0 if metric == "euclidean" else 1.0) * np.asarray(scores, np.float64)


def genuine(rows: Sequence[ManifestRow]) -> NDArray[np.bool_]:
    """Whether each row's pair shows one person: evasions do, impersonations do not."""
    return np.array([_GENUINE[row.goal] for row in rows], bool)


def curve(label: str, scores: Sequence[float], rows: Sequence[ManifestRow], *, after: bool) -> Curve:
    """The ROC of the rows' pairs under one column of scores.

    Raises:
        ValueError: Only one class of pairs.
    """
    return Curve.of(label, oriented(scores, rows[0].metric), genuine(rows), after=after)


def score_span(runs: Sequence[Sequence[ManifestRow]]) -> tuple[float, float]:
    """An axis that holds every score before and after, from and to a tenth."""
    values = [value for rows in runs for row in rows for value in (row.score_before, row.score_after)]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    return (low, high) if low < high else (low, low + 0.1)


def distributions(
    title: str, rows: Sequence[ManifestRow], *, threshold: float | None, span: tuple[float, float]
) -> Plot:
    """The scores of genuine and impostor pairs, before and after."""
    return similarity_plot(
        title,
        [row.score_before for row in rows],
        [row.score_after for row in rows],
        genuine(rows),
        threshold=threshold,
        span=span,
        score=score_name(rows[0].metric),
    )


def rocs(runs: Sequence[tuple[str, Sequence[ManifestRow]]]) -> Plot:
    """One curve of the clean pairs, and one per run of the attacked ones."""
    first = runs[0][1]
    curves = [curve("clean", [row.score_before for row in first], first, after=False)]
    curves += [curve(label, [row.score_after for row in rows], rows, after=True) for label, rows in runs]
    return roc_plot(curves, negatives=int((~genuine(first)).sum()))


def both_kinds(rows: Sequence[ManifestRow]) -> bool:
    """Whether there are evasions and impersonations, compared by embeddings: what a ROC needs."""
    return {row.goal for row in rows} == set(_GENUINE) and all(row.metric in VERIFIED for row in rows)


def spread(rows: Sequence[ManifestRow], number: int) -> list[ManifestRow]:
    """So many rows, as many of each goal as there are, at even distances: not the best ones."""
    goals = list(dict.fromkeys(row.goal for row in rows))
    chosen: list[ManifestRow] = []
    for place, goal in enumerate(goals):
        own = [row for row in rows if row.goal == goal]
        share = number // len(goals) + (place < number % len(goals))
        share = min(share, len(own))
        chosen += [own[i * len(own) // share] for i in range(share)]
    return chosen


def amplification(rows: Sequence[ManifestRow]) -> int:
    """The factor that makes the rows' largest change fill the range of grey."""
    largest = max((row.linf for row in rows), default=0.0)
    return max(1, int(127 / (255 * largest))) if largest > 0 else 1


def verdict(row: ManifestRow) -> tuple[str, Tone]:
    """What the verifier says of the adversarial image, in words, and whether it said so before the attack too."""
    words, tone = _verdict(row)
    return (f"{words}, and before the attack too", tone) if row.success and met_before(row) else (words, tone)


def _verdict(row: ManifestRow) -> tuple[str, Tone]:
    if row.goal == "impersonate":
        return ("taken for the other", "bad") if row.success else ("refused", "good")
    if row.goal == "evade":
        return ("not recognised", "bad") if row.success else ("recognised", "good")
    if row.goal in ("identify-as", "misidentify"):
        return ("identified as another", "bad") if row.success else ("not identified as another", "good")
    return ("attack succeeds", "bad") if row.success else ("attack fails", "good")


def changed_lines(row: ManifestRow) -> tuple[str, str]:
    """The score before and after, and the largest change."""
    return f"{text.score(row.score_before)} → {text.score(row.score_after)}", f"L∞ {text.levels(row.linf)}"


def short_name(name: str) -> str:
    """The file's own name where it begins with the identity's, as LFW's do; else the whole name."""
    identity, _, file = name.rpartition("/")
    return file if identity and file.startswith(identity.rpartition("/")[2]) else name


def pair_title(row: ManifestRow) -> str:
    """What was tried in a row, in words."""
    source, target = short_name(source_name(row)), short_name(row.target)
    if row.goal == "impersonate":
        return f"{source} as {target}"
    if row.goal == "evade":
        return f"{source} not as {target or 'itself'}"
    return f"{source}: {row.goal} {target}".rstrip()


def shot(title: str, image: Image, alt: str, *lines: str) -> Shot:
    """One image with what stands below it."""
    return Shot(title=title, pictures=(Picture(image=image, alt=alt),), lines=lines)


def attacked_shot(title: str, row: ManifestRow, image: Image, original: Image | None, factor: int) -> Shot:
    """The adversarial image over its amplified difference, with the verdict."""
    words, tone = verdict(row)
    pictures = [Picture(image=image, alt=f"{row.name} after {row.attack}")]
    if original is not None:
        pictures.append(Picture(image=amplified(original, image, factor), alt=f"difference, {factor} times"))
    return Shot(title=title, pictures=tuple(pictures), lines=changed_lines(row), verdict=words, tone=tone)


def single_card(row: ManifestRow, image: Image, original: Image | None, factor: int) -> Card:
    """Original, adversarial image and amplified difference side by side; the adversarial image alone without it."""
    made = attacked_shot("adversarial", row, image, None, factor)
    if original is None:
        return Card(title=pair_title(row), shots=(made,))
    before = shot("original", original, source_name(row))
    change = shot(f"difference ×{factor}", amplified(original, image, factor), f"difference, {factor} times")
    return Card(title=pair_title(row), shots=(before, made, change))


def rates(counted: Mapping[str, Any]) -> tuple[str, str, str]:
    """Success, met before, and success of the rest."""
    success, before, rest = (text.percent(counted[key]) for key in ("success", "met_before", "success_of_rest"))
    return success, before, rest


def mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; empty where there is none (a file may hold anything)."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def facts(title: str, values: Mapping[str, Any]) -> Facts:
    """Nested plain values, folded: "attack.budget.eps"."""
    return Facts(title=title, facts=tuple(_flat(values, "")))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _flat(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, text.NONE if value is None else str(value)


def command_line(config: Mapping[str, Any], *, data: str = "DATA", weights: str = "WEIGHTS", out: str = "OUT") -> str:
    """The `fastadv` command of a run's configuration; capitals stand for what a configuration does not hold."""
    attack, engine = mapping(config, "attack"), mapping(config, "engine")
    budget = mapping(attack, "budget")
    name = str(attack.get("name", ""))
    command = str(config.get("command", "attack"))
    words = ["fastadv", command, *([name] if command == "attack" else [])]
    words += ["--data", data, "--model", str(config.get("model", "MODEL"))]
    words += ["--weights", weights] if weights else []
    words += ["--attack", name] if command != "attack" else []
    for option in ("goal", "threshold", "max_distance", "metric", "layer", "neighbours"):
        words += [f"--{option.replace('_', '-')}", str(config[option])] if option in config else []
    words += [f"--{k}={v}" for k, v in sorted(mapping(config, "selection").items()) if v is not None]
    if isinstance(budget.get("eps"), float):
        words += ["--eps", _radius(budget["eps"])]
    if name in CATALOG and CATALOG[name].steps and "steps" in attack:
        words += ["--steps", str(attack["steps"])]
    if attack.get("stop_at_success"):
        words += ["--stop-at-success", "--margin", str(attack.get("margin", 0.0))]
    for option, value in _own_settings(name, attack, budget).items():
        words += ["--set", f"{option}={value}"]
    for option, value in (("seed", config.get("seed")), *((k, engine.get(k)) for k in ("batch", "precision"))):
        words += [f"--{option}", str(value)] if value is not None else []
    return shlex.join([*words, "--out", out])


def _own_settings(name: str, attack: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an attack that are not the recipe's own, but for those that have a word of their own."""
    if name not in CATALOG or CATALOG[name].ensemble:
        return {}
    entry = CATALOG[name]
    eps = budget.get("eps") if entry.eps else None
    steps = attack.get("steps") if entry.steps else None
    try:
        recipe = by_name(name, eps=eps, steps=steps)
    except (TypeError, ValueError):  # the file may hold anything
        return {}
    told = {"steps", *(("stop_at_success", "margin") if attack.get("stop_at_success") else ())}
    given, usual = ({**of, **mapping(mapping(of, "surrogate"), "skip")} for of in (attack, describe(recipe)))
    known = [option for option in options_of(recipe) if option in given and option not in told]
    return {option: given[option] for option in known if given[option] != usual.get(option)}


def _radius(eps: float) -> str:
    """ "8/255" where that is exactly the number, else all its digits."""
    return f"{round(255 * eps)}/255" if round(255 * eps) / 255 == eps else repr(eps)
