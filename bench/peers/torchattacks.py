"""torchattacks (MIT): the fastest peer for FGSM, PGD and MI-FGSM."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Classes:
    """The attacks of a module with torchattacks's classes, as its users call them."""

    module: str

    def _run(self, name: str, network: Network, given: Given, **options: Any) -> Tensor:
        return getattr(importlib.import_module(self.module), name)(network, **options)(given.x, given.label)

    def _fgsm(self, network: Network, given: Given, s: Setting) -> Tensor:
        return self._run("FGSM", network, given, eps=s.eps)

    def _pgd(self, network: Network, given: Given, s: Setting) -> Tensor:
        return self._run("PGD", network, given, eps=s.eps, alpha=s.step_size, steps=s.steps)

    def _mi_fgsm(self, network: Network, given: Given, s: Setting) -> Tensor:
        return self._run("MIFGSM", network, given, eps=s.eps, alpha=s.step_size, steps=s.steps)

    def _apgd(self, network: Network, given: Given, s: Setting) -> Tensor:
        return self._run("APGD", network, given, eps=s.eps, steps=s.steps, loss="ce")

    def _carlini_wagner(self, network: Network, given: Given, s: Setting) -> Tensor:
        """It has no search for the constant: one run of as many steps."""
        return self._run("CW", network, given, c=1, steps=s.searches * s.steps, lr=0.01)

    def _deepfool(self, network: Network, given: Given, s: Setting) -> Tensor:
        return self._run("DeepFool", network, given, steps=s.steps)

    @property
    def attacks(self) -> Mapping[str, Call]:
        """By the names of the tasks."""
        return MappingProxyType(
            {
                "fgsm": self._fgsm,
                "pgd": self._pgd,
                "mi-fgsm": self._mi_fgsm,
                "apgd": self._apgd,
                "cw-l2": self._carlini_wagner,
                "deepfool": self._deepfool,
            }
        )


ATTACKS = Classes(NAME).attacks
