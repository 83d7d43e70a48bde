"""adv-lib (BSD-3), the fastest C&W-L2, and the fastest DeepFool where classes are few."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from torch import Tensor, nn

NAME = "adv-lib"


def _attacks() -> Any:
    """Its attacks. Two things it imports at the top are of no use to them, and often missing."""
    for name in ("visdom", "torchvision"):
        try:
            importlib.import_module(name)
        except ImportError:
            empty = types.ModuleType(name)
            empty.Visdom, empty.models = object, types.ModuleType("models")  # type: ignore[attr-defined]
            sys.modules[name] = empty
    return importlib.import_module("adv_lib.attacks")


def missing() -> str | None:
    """Why it cannot be imported here."""
    try:
        _attacks()
    except ImportError as error:
        return str(error)
    return None


def carlini_wagner(model: nn.Module, x: Tensor, label: Tensor, *, searches: int, steps: int) -> Tensor:
    """C&W-L2 with a first constant of 1."""
    return _attacks().carlini_wagner_l2(
        model, x, label, binary_search_steps=searches, max_iterations=steps, initial_const=1.0
    )


def deepfool(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """DeepFool-L2: the gradients of all classes."""
    return _attacks().df(model, x, label, steps=50)
