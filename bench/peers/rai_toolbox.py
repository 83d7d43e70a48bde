"""rai-toolbox (MIT): PGD with frozen weights; it knows no pixel range, so the result is clipped behind it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from bench.peers.calls import Call, Given, Network, Setting, why_missing
from bench.peers.versions import peer_versions

NAME = "rai-toolbox"


def missing() -> str | None:
    """Why it cannot be imported here."""
    return why_missing("rai_toolbox.perturbations", "rai_toolbox.optim")


def version() -> str | None:
    """Of the installed library."""
    return peer_versions()[NAME]


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    perturbations = importlib.import_module("rai_toolbox.perturbations")
    start = partial(
        perturbations.AdditivePerturbation,
        init_fn=importlib.import_module("rai_toolbox.perturbations.init").uniform_like_linf_n_ball_,
        epsilon=s.eps,
    )
    made, _ = perturbations.gradient_ascent(
        model=network,
        data=given.x,
        target=given.label,
        optimizer=importlib.import_module("rai_toolbox.optim").LinfProjectedOptim,
        perturbation_model=start,
        steps=s.steps,
        lr=s.step_size,
        epsilon=s.eps,
    )
    return made.clamp(0, 1)


ATTACKS: Mapping[str, Call] = MappingProxyType({"pgd": _pgd})
