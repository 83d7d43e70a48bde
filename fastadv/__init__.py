"""Adversarial attacks on face recognition, and their detection, at the full speed of the hardware.

``dir(fastadv)`` is the table of contents: what is attacked (`wrap`, `load`, `load_onnx`, `FaceModel`), attacks
(`attack`, `run`, `attacks`, `Recipe`, `surrogates`), goals and budgets, whole data sets (`stream`, `data`,
`distributed`), detection (`detection`, `Guard`, `load_detector`), `defences`, and how it is measured (`recognition`).

A name is imported when it is first used, so that ``import fastadv`` and ``fastadv --help`` do not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

from fastadv._version import __version__

if TYPE_CHECKING:
    from fastadv import attacks, data, defences, detection, distributed, models, recognition, surrogates
    from fastadv.attacks import (
        L2,
        ClassifyAs,
        Evade,
        Gallery,
        GalleryClass,
        Goal,
        Impersonate,
        Linf,
        MatchFeatures,
        Misclassify,
        Objective,
        Recipe,
        SignGradient,
    )
    from fastadv.core.allocator import keep_freed_memory
    from fastadv.core.errors import Error
    from fastadv.detection import Guard, load_detector
    from fastadv.engine import Adversarials, AttackWarning, Engine, Job, Result
    from fastadv.engine.attack import attack
    from fastadv.engine.run import run, stream_jobs, trace
    from fastadv.models import FaceModel, load, load_onnx
    from fastadv.models.wrap import wrap
    from fastadv.runs.production import stream
    from fastadv.surrogates import Surrogate

__all__ = [
    "L2",
    "Adversarials",
    "AttackWarning",
    "ClassifyAs",
    "Engine",
    "Error",
    "Evade",
    "FaceModel",
    "Gallery",
    "GalleryClass",
    "Goal",
    "Guard",
    "Impersonate",
    "Job",
    "Linf",
    "MatchFeatures",
    "Misclassify",
    "Objective",
    "Recipe",
    "Result",
    "SignGradient",
    "Surrogate",
    "__version__",
    "attack",
    "attacks",
    "data",
    "defences",
    "detection",
    "distributed",
    "keep_freed_memory",
    "load",
    "load_detector",
    "load_onnx",
    "models",
    "recognition",
    "run",
    "stream",
    "stream_jobs",
    "surrogates",
    "trace",
    "wrap",
]

_PACKAGES = (
    *("attacks", "backends", "core", "data", "defences", "detection", "engine", "models", "ops", "recognition"),
    *("distributed", "runs", "surrogates"),
)
# where each name is, but for the packages
_MODULES = {
    **dict.fromkeys(("L2", "ClassifyAs", "Evade", "Gallery", "GalleryClass", "Goal", "Impersonate", "Linf"), "attacks"),
    **dict.fromkeys(("MatchFeatures", "Misclassify", "Objective", "Recipe", "SignGradient"), "attacks"),
    **dict.fromkeys(("Adversarials", "AttackWarning", "Engine", "Job", "Result", "attack", "run"), "engine"),
    **dict.fromkeys(("stream_jobs", "trace"), "engine"),
    **dict.fromkeys(("FaceModel", "load", "load_onnx", "wrap"), "models"),
    **dict.fromkeys(("Guard", "load_detector"), "detection"),
    "Error": "core.errors",
    "keep_freed_memory": "core.allocator",
    "Surrogate": "surrogates",
    "stream": "runs.production",
}


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # a checker takes the imports above, and refuses other names

    def __getattr__(name: str) -> object:
        if name == "backends":
            importlib.import_module(f"{__name__}.ops")  # the operations declare themselves to it
        if name in _PACKAGES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        return globals()[name]
