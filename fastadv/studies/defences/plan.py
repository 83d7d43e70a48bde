"""What a study of defences compares: defences, attacks and threat models, from text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastadv import defences
from fastadv.attacks.spec import AttackSpec, parse_attack
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.files import file_hash
from fastadv.core.numbers import parse_eps, whole
from fastadv.data import FaceSource
from fastadv.detection import Detector
from fastadv.models.identity import state_hash
from fastadv.runs.goals import check_goal

NONE = "none"
FORMS = (
    "mean[:SIZE], gauss[:SIZE[:SIGMA]], median[:SIZE], bits[:BITS], jpeg[:QUALITY[:GRADIENT]], resize-pad[:SMALLEST], "
    "noise2clean[:FILE], A+B, one(A|B), selective[:LAYERS[:SHARE]], weights:FILE, "
    "attack(NAME[:STEPS][@EPS])[:START[:THRESHOLD]], known(...) with the same arguments, for queries known to be "
    "attacked, or pair(NAME[:STEPS][@EPS])[:both|gallery|query]"
)

_FILTERS: Mapping[str, tuple[Callable[..., defences.InputDefence], tuple[tuple[str, Callable[[str], Any]], ...]]] = (
    MappingProxyType(
        {
            "mean": (defences.MeanFilter, (("size", int),)),
            "gauss": (defences.GaussianBlur, (("size", int), ("sigma", float))),
            "median": (defences.Median, (("size", int),)),
            "bits": (defences.BitDepth, (("bits", int),)),
            "jpeg": (defences.Jpeg, (("quality", int), ("gradient", str))),
            "resize-pad": (defences.RandomResizePad, (("smallest", float),)),
        }
    )
)
_DENOISER = re.compile(r"(?<=noise2clean:)[^+|()]+")
_ONE_OF = re.compile(r"one\((.+)\)")
_DEEPEST = 20
_ATTACK = re.compile(r"(attack|known)\((.+?)\)(?::([^:]+))?(?::([^:]+))?")
_PAIR = re.compile(r"pair\((.+?)\)(?::([^:]+))?")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A defence of the study.

    Attributes:
        label: As it was written; without the longer part of a file's path.
        defence: What it is; switched-off filters before they are found; or None for no defence.
    """

    label: str
    defence: defences.Defence | defences.SelectiveDropout | defences.PairAttackAsDefence | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy:
    """An attacked copy of the faces, made elsewhere by who does not know the defences: every pair is taken from it.

    Attributes:
        label: What reports call it.
        source: Faces of the same names, cropped alike.
    """

    label: str
    source: FaceSource


def read_attack(text: str) -> AttackSpec:
    """An attack from its text, as ``parse_attack``; it must move towards and away from another image's embedding.

    Raises:
        ValueError: As ``parse_attack``; or the attack has no goal on embeddings.
    """
    spec = parse_attack(text)
    check_goal(spec.recipe(), "impersonate")
    return spec


def parse_defence(text: str) -> Planned:
    """A defence from its text: see ``FORMS``, or ``"none"``.

    Raises:
        ValueError: The text is of no such form, or a number is out of range.
        CheckpointError: A denoiser's file is missing, damaged or of something else.
        ImportError: It needs a package that is not installed.
    """
    if text == NONE:
        return Planned(label=text, defence=None)
    name, *numbers = text.split(":")
    if name == "weights":
        file = Path(text.partition(":")[2])
        if not os.path.isfile(file):
            raise ArgumentError(f"defence: expected weights:FILE with a file that exists, got {text!r}")
        made = defences.Retrained(file=file)
        return Planned(label=made.name, defence=made)
    if name == "selective":
        fields = _fields(text, numbers, (("gamma", int), ("kappa", float)))
        return Planned(label=text, defence=defences.SelectiveDropout(**fields))
    found = _ATTACK.fullmatch(text)
    if found:
        kind, inner, start, threshold = found.groups()
        fields = {"start": parse_eps(start)} if start else {}
        if threshold:
            fields.update(_fields(text, [threshold], (("threshold", float),)))
        return Planned(
            label=text,
            defence=defences.AttackAsDefence(attack=read_attack(inner).recipe(), known=kind == "known", **fields),
        )
    found = _PAIR.fullmatch(text)
    if found:
        moves, side = read_attack(found[1]).recipe(), found[2] or "both"
        return Planned(label=text, defence=defences.PairAttackAsDefence(attack=moves, side=side))
    if text.count("(") > _DEEPEST:
        raise ArgumentError(f"defence: expected at most {_DEEPEST} brackets, got {brief(text)}")
    # folder and file tell denoisers apart, and fit into tables and plots
    label = _DENOISER.sub(lambda path: "/".join(Path(os.path.splitext(path[0])[0]).parts[-2:]), text)
    return Planned(label=label, defence=_filter(text))


def _filter(text: str) -> defences.InputDefence:
    parts = _split(text, "+")
    if len(parts) > 1:
        return defences.Chain(parts=tuple(_filter(part) for part in parts))
    inside = _ONE_OF.fullmatch(text)
    if inside:
        return defences.OneOf(parts=tuple(_filter(part) for part in _split(inside[1], "|")))
    name, *numbers = text.split(":")
    if name == "noise2clean":
        return defences.Noise2Clean.from_file(text.partition(":")[2]) if numbers else defences.Noise2Clean()
    if name not in _FILTERS:
        raise ArgumentError(f"defence: expected {NONE}, {FORMS}, got {text!r}")
    make, fields = _FILTERS[name]
    return make(**_fields(text, numbers, fields))


def _split(text: str, mark: str) -> list[str]:
    """The parts between marks that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _fields(text: str, given: Sequence[str], fields: Sequence[tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    if len(given) > len(fields):
        raise ArgumentError(f"defence: expected at most {len(fields)} numbers after its name, got {text!r}")
    found = {}
    for value, (name, kind) in zip(given, fields, strict=False):
        try:
            found[name] = kind(value)
        except ValueError:
            raise ArgumentError(f"defence: expected a number for {name}, got {value!r} in {text!r}") from None
    return found


def parse_threat(
    text: str, *, detector: Detector | None = None, false_alarm: float | None = None
) -> defences.ThreatModel:
    """A threat model from ``"zero"``, ``"perfect[:SAMPLES]"`` or ``"adaptive[:SAMPLES]"``.

    Args:
        text: Which.
        detector: What an adaptive attacker has to pass; calibrated.
        false_alarm: The rate of its threshold; None: that of ``Thresholds.usual_rate``.

    Raises:
        ValueError: The text is of no such form, or there is no calibrated detector for the adaptive one.
    """
    name, colon, samples = text.partition(":")
    count = whole(samples) if colon else 1
    if text == "zero":
        return defences.ZeroKnowledge()
    if name not in ("perfect", "adaptive") or count is None:
        raise ArgumentError(f"threat: expected zero, perfect[:SAMPLES] or adaptive[:SAMPLES], got {text!r}")
    if name == "perfect":
        return defences.PerfectKnowledge(samples=count)
    if detector is None or detector.thresholds is None:
        raise ArgumentError(
            "detector: expected a calibrated one for the threat 'adaptive', got "
            + ("none" if detector is None else "one without thresholds")
        )
    rate = detector.thresholds.usual_rate if false_alarm is None else false_alarm
    return defences.Adaptive(detector=detector, threshold=detector.thresholds.at(rate), samples=count)


def files_of(planned: Sequence[Planned]) -> dict[str, str]:
    """SHA-256 of the weights of each defence that has some, by label: what a study must not find changed.

    Raises:
        OSError: A file cannot be read.
    """
    found = {p.label: file_hash(p.defence.file) for p in planned if isinstance(p.defence, defences.Retrained)}
    for plan in planned:
        hashes = [state_hash(network) for network in defences.networks_of(plan.defence)]
        if hashes:
            found[plan.label] = ",".join(hashes)
    return found


def with_none(planned: Sequence[Planned]) -> tuple[Planned, ...]:
    """The defences with no defence first.

    Raises:
        ValueError: One is given twice.
    """
    labels = [p.label for p in planned]
    if len(set(labels)) != len(labels):
        raise ArgumentError(f"defence: expected each one once, got {', '.join(labels)}")
    return (Planned(label=NONE, defence=None), *(p for p in planned if p.label != NONE))
