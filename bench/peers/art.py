"""The Adversarial Robustness Toolbox (MIT): the best known of the libraries."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.calls import Call, Given, Network, Setting, stand_in, why_missing
from bench.peers.versions import peer_versions

NAME = "ART"


def missing() -> str | None:
    """Why it cannot be imported here."""
    stand_in("requests")
    return why_missing("art.attacks.evasion", "art.estimators.classification")


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()["adversarial-robustness-toolbox"]


def _run(name: str, network: Network, given: Given, **options: Any) -> Tensor:
    x = given.x
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        model=network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=network.classes,
        clip_values=(0, 1),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = getattr(importlib.import_module("art.attacks.evasion"), name)
    made = attack(classifier, batch_size=len(x), **options).generate(x.cpu().numpy(), given.label.cpu().numpy())
    return torch.from_numpy(made)


def _fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("FastGradientMethod", network, given, eps=s.eps)


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    options = {"eps": s.eps, "eps_step": s.step_size, "max_iter": s.steps, "num_random_init": 1}
    return _run("ProjectedGradientDescent", network, given, **options, verbose=False)


def _mi_fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    options = {"eps": s.eps, "eps_step": s.step_size, "max_iter": s.steps}
    return _run("MomentumIterativeMethod", network, given, **options, verbose=False)


def _apgd(network: Network, given: Given, s: Setting) -> Tensor:
    options = {"norm": math.inf, "eps": s.eps, "eps_step": 2 * s.eps, "max_iter": s.steps, "nb_random_init": 1}
    return _run("AutoProjectedGradientDescent", network, given, **options, loss_type="cross_entropy", verbose=False)


def _carlini_wagner(network: Network, given: Given, s: Setting) -> Tensor:
    options = {"binary_search_steps": s.searches, "max_iter": s.steps, "initial_const": 1.0}
    return _run("CarliniL2Method", network, given, **options, verbose=False)


def _deepfool(network: Network, given: Given, s: Setting) -> Tensor:
    return _run("DeepFool", network, given, max_iter=s.steps, nb_grads=10, verbose=False)


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
