"""Foolbox (MIT): the fastest DeepFool where classes are many."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bench.peers.calls import Call, Given, Network, Setting, stand_in, why_missing
from bench.peers.versions import peer_versions

NAME = "foolbox"


def missing() -> str | None:
    """Why it cannot be imported here. Its zoo, which is not used, imports git and requests."""
    stand_in("git", Repo=object)
    stand_in("requests")
    return why_missing("foolbox")


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()[NAME]


def _run(name: str, network: Network, given: Given, epsilons: float | None, **options: Any) -> Tensor:
    foolbox = importlib.import_module("foolbox")
    wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device=given.x.device)
    return getattr(foolbox.attacks, name)(**options)(wrapped, given.x, given.label, epsilons=epsilons)[1]


def _fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("FGSM", network, given, s.eps)


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("LinfPGD", network, given, s.eps, steps=s.steps, abs_stepsize=s.step_size)


def _mi_fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    name = "LinfMomentumIterativeFastGradientMethod"
    return _run(name, network, given, s.eps, steps=s.steps, abs_stepsize=s.step_size)


def _carlini_wagner(network: Network, given: Given, s: Setting) -> Tensor:
    options = {"binary_search_steps": s.searches, "steps": s.steps, "initial_const": 1.0}
    return _run("L2CarliniWagnerAttack", network, given, None, **options)


def _deepfool(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("L2DeepFoolAttack", network, given, None, steps=s.steps, candidates=10)


ATTACKS: Mapping[str, Call] = MappingProxyType(
    {"fgsm": _fgsm, "pgd": _pgd, "mi-fgsm": _mi_fgsm, "cw-l2": _carlini_wagner, "deepfool": _deepfool}
)
