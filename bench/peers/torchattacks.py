"""torchattacks (MIT): the fastest peer for FGSM, PGD and MI-FGSM."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bench.peers.calls import Call, Given, Network, Setting, why_missing
from bench.peers.versions import peer_versions

NAME = "torchattacks"


def missing() -> str | None:
    """Why it cannot be imported here."""
    return why_missing(NAME)


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()[NAME]


def _run(name: str, network: Network, given: Given, **options: Any) -> Tensor:
    return getattr(importlib.import_module("torchattacks"), name)(network, **options)(given.x, given.label)


def _fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("FGSM", network, given, eps=s.eps)


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("PGD", network, given, eps=s.eps, alpha=s.step_size, steps=s.steps)


def _mi_fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("MIFGSM", network, given, eps=s.eps, alpha=s.step_size, steps=s.steps)


def _apgd(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("APGD", network, given, eps=s.eps, steps=s.steps, loss="ce")


def _carlini_wagner(network: Network, given: Given, s: Setting) -> Tensor:
    """It has no search for the constant: one run of as many steps."""
    return _run("CW", network, given, c=1, steps=s.searches * s.steps, lr=0.01)


def _deepfool(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("DeepFool", network, given, steps=s.steps)


ATTACKS: Mapping[str, Call] = MappingProxyType(
    {
        "fgsm": _fgsm,
        "pgd": _pgd,
        "mi-fgsm": _mi_fgsm,
        "apgd": _apgd,
        "cw-l2": _carlini_wagner,
        "deepfool": _deepfool,
    }
)
