"""Adversarial attacks on face recognition, and their detection, at the full speed of the hardware.

``dir(fastadv)`` is the table of contents: what is attacked (`wrap`, `load`, `FaceModel`), attacks (`attack`, `run`,
`attacks`, `Recipe`, `surrogates`), goals and budgets, whole data sets (`stream`, `data`), detection (`detection`,
`Guard`, `load_detector`), `defences`, and how it is measured (`recognition`).
"""

from fastadv import attacks, data, defences, detection, models, recognition, surrogates
from fastadv._version import __version__
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
    Recipe,
    SignGradient,
)
from fastadv.core.errors import Error
from fastadv.detection import Guard, load_detector
from fastadv.engine import Adversarials, AttackWarning, Engine, Job, Result, attack, run, stream_jobs, trace
from fastadv.models import FaceModel, load, wrap
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
    "load",
    "load_detector",
    "models",
    "recognition",
    "run",
    "stream",
    "stream_jobs",
    "surrogates",
    "trace",
    "wrap",
]


def __dir__() -> list[str]:
    return __all__
