"""SciPy's L-BFGS-B, an image at a time, as every public code of these two attacks runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bench import optimisation
from bench.peers.calls import Call, Given, Network, Setting, why_missing
from bench.peers.versions import peer_versions
from fastadv.attacks import ClassifyAs, Goal, Linf
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB

NAME = "SciPy"


def missing() -> str | None:
    """Why it cannot be imported here."""
    return why_missing("scipy.optimize")


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()["scipy"]


def _each(
    solver: Callable[..., tuple[Tensor, int]],
    attack: Callable[[Setting], Any],
    goal: Callable[[Given], Goal],
    network: Network,
    given: Given,
    setting: Setting,
) -> Tensor:
    with threadpool_limits(1, user_api="blas"):
        found = [solver(attack(setting), goal(one), network.model, one.x)[0] for one in given.split(1)]
    return torch.cat(found)


def _df(s: Setting) -> LBFGSB:
    return LBFGSB(budget=Linf(s.eps), evaluations=s.steps, tolerance=0.0)


ATTACKS: Mapping[str, Call] = MappingProxyType(
    {
        "l-bfgs": partial(
            _each,
            optimisation.scipy_smallest,
            lambda s: LBFGS(searches=s.searches, steps_each=s.steps),
            lambda given: ClassifyAs(given.wanted),
        ),
        "df": partial(_each, optimisation.scipy_box, _df, lambda given: MatchFeatures(given.target)),
    }
)
