"""The plain loop with ``torch.compile`` of the network, where a compiler works."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bench.peers import plain
from bench.peers.calls import Call, Network
from fastadv.models import FaceModel

NAME = "compiled loop"
ATTACKS: Mapping[str, Call] = MappingProxyType(
    {k: v for k, v in plain.ATTACKS.items() if k in ("pgd", "mi-fgsm", "fim")}
)
version = plain.version


class CompiledNetwork(Network):
    """The network behind ``torch.compile``; the loop around it stays eager, as most users have it."""

    def __init__(self, model: FaceModel, output: str = "logits") -> None:
        super().__init__(model, output)
        self._compiled = torch.compile(super().forward)

    def forward(self, images: Tensor) -> Tensor:
        return self._compiled(images)


def missing() -> str | None:
    """Why nothing can be compiled here."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception as error:  # whatever the compiler says
        return f"torch.compile fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    return None
