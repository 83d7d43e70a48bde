"""The engine: fixed slots, refilled as they finish; one loop for every attack."""

from fastadv.engine.adversarials import Adversarials
from fastadv.engine.attack import attack
from fastadv.engine.job import Job, Result, notices
from fastadv.engine.run import run, stream_jobs, trace
from fastadv.engine.settings import AttackWarning, Engine

__all__ = [
    "Adversarials",
    "AttackWarning",
    "Engine",
    "Job",
    "Result",
    "attack",
    "notices",
    "run",
    "stream_jobs",
    "trace",
]
