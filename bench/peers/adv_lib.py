"""adv-lib (BSD-3): the fastest C&W-L2, and the fastest DeepFool where classes are few."""

from __future__ import annotations

import importlib
import math
import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bench.peers.calls import Call, Given, Network, Setting, stand_in, why_missing
from bench.peers.versions import peer_versions

NAME = "adv-lib"


def missing() -> str | None:
    """Why it cannot be imported here."""
    stand_in("visdom", Visdom=object)
    stand_in("torchvision", models=types.ModuleType("models"))
    stand_in("tqdm", tqdm=object)
    return why_missing("adv_lib.attacks")


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()[NAME]


def _attacks() -> Any:
    return importlib.import_module("adv_lib.attacks")


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    return _attacks().pgd_linf(
        network, given.x, given.label, ε=s.eps, steps=s.steps, absolute_step_size=s.step_size, random_init=True
    )


def _apgd(network: Network, given: Given, s: Setting) -> Tensor:
    return _attacks().apgd(
        network, given.x, given.label, eps=s.eps, norm=math.inf, n_iter=s.steps, n_restarts=1, loss_function="ce"
    )


def _carlini_wagner(network: Network, given: Given, s: Setting) -> Tensor:
    return _attacks().carlini_wagner_l2(
        network, given.x, given.label, binary_search_steps=s.searches, max_iterations=s.steps, initial_const=1.0
    )


def _deepfool(network: Network, given: Given, s: Setting) -> Tensor:
    return _attacks().df(network, given.x, given.label, steps=s.steps)


ATTACKS: Mapping[str, Call] = MappingProxyType(
    {"pgd": _pgd, "apgd": _apgd, "cw-l2": _carlini_wagner, "deepfool": _deepfool}
)
