"""Adversarial attacks on face recognition, and their detection, at the full speed of the hardware."""

from fastadv import attacks, data, detection
from fastadv._version import __version__
from fastadv.attacks import L2, ClassifyAs, Evade, Impersonate, Linf, Misclassify, SignGradient
from fastadv.core.errors import Error
from fastadv.engine import Adversarials, AttackWarning, Engine, Job, Result, attack, run, stream_jobs
from fastadv.models import FaceModel, load, wrap
from fastadv.runs.production import stream

__all__ = [
    "L2",
    "Adversarials",
    "AttackWarning",
    "ClassifyAs",
    "Engine",
    "Error",
    "Evade",
    "FaceModel",
    "Impersonate",
    "Job",
    "Linf",
    "Misclassify",
    "Result",
    "SignGradient",
    "__version__",
    "attack",
    "attacks",
    "data",
    "detection",
    "load",
    "run",
    "stream",
    "stream_jobs",
    "wrap",
]
