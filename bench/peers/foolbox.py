"""Foolbox (MIT), the fastest DeepFool where classes are many, and a C&W-L2."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

NAME = "foolbox"


def missing() -> str | None:
    """Why it cannot be imported here."""
    try:
        importlib.import_module("foolbox")
    except ImportError as error:
        return str(error)
    return None


def _wrapped(model: nn.Module, x: Tensor) -> tuple[Any, Any]:
    foolbox = importlib.import_module("foolbox")
    return foolbox, foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)


def carlini_wagner(model: nn.Module, x: Tensor, label: Tensor, *, searches: int, steps: int) -> Tensor:
    """C&W-L2 with a first constant of 1."""
    foolbox, wrapped = _wrapped(model, x)
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=searches, steps=steps, initial_const=1.0)
    return attack(wrapped, x, label, epsilons=None)[1]


def deepfool(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """DeepFool-L2 with ten candidates."""
    foolbox, wrapped = _wrapped(model, x)
    return foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10)(wrapped, x, label, epsilons=None)[1]
