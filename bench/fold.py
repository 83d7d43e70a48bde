"""What folded batch norms save: a gradient evaluation of networks that differ in nothing but what is folded.

Activations are separate in all of them; what making them part of convolutions saves is in ``engine-overhead``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.against_peers import interval
from bench.measure import synchronise
from bench.peers.tasks import best_precisions
from fastadv import keep_freed_memory
from fastadv.models import FaceModel, load, prepare
from fastadv.models.folding import BATCH_NORMS

#: Images of a batch on a CPU and on CUDA.
BATCH = {"mobilefacenet": (16, 128), "iresnet50": (4, 128)}
_ROUNDS = 15
_AGREE = 1e-4  # relative, between float32 outputs; gradients differ more, where rounding moves a value across a kink


def _norms(model: FaceModel) -> list[str]:
    return [name for name, module in model.backbone.named_modules() if isinstance(module, BATCH_NORMS)]


def variants(model: FaceModel, precision: str) -> dict[str, FaceModel]:
    """The network with no batch norm folded, with those behind a layer, and with those before a layer, too."""
    # a batch norm whose own output must stay can be folded into the layer before it alone
    behind = prepare(model, precision=precision, fuse=False, keep=_norms(model))
    return {
        "none": prepare(model, precision=precision, fold=False),
        "behind": behind,
        "all": prepare(model, precision=precision, fuse=False),
    }


def _evaluation(model: FaceModel, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    x = x.contiguous(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        leaf = x.detach().requires_grad_(True)
        return torch.autograd.grad(model(leaf).sum(), leaf)[0]

    return call


def run(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Milliseconds an image of a gradient evaluation, and ratios with their 95 % intervals over interleaved rounds.

    Raises:
        AssertionError: The float32 outputs of the three differ by more than rounding.
    """
    keep_freed_memory()  # as the commands do
    rows: list[Mapping[str, Any]] = []
    for name, sizes in BATCH.items():
        model = load(name, random_weights_seed=0, device=device).eval()
        batch = 2 if quick else sizes[device.startswith("cuda")]
        x = torch.rand(batch, *model.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        for precision in best_precisions(device):
            found = variants(model, precision or "fp32")
            calls = {kind: _evaluation(each, x) for kind, each in found.items()}
            for call in calls.values():  # PyTorch chooses kernels
                call()
            if found["none"].precision == "fp32":
                with torch.no_grad():
                    outputs = [each(x) for each in found.values()]
                assert all(float((each - outputs[0]).norm() / outputs[0].norm()) < _AGREE for each in outputs)
            spent: dict[str, list[float]] = {kind: [] for kind in calls}
            for k in range(2 if quick else _ROUNDS):
                order = list(calls)[k % 3 :] + list(calls)[: k % 3]
                for kind in order if k % 2 else reversed(order):
                    synchronise(device)
                    begin = time.perf_counter()
                    calls[kind]()
                    synchronise(device)
                    spent[kind].append(time.perf_counter() - begin)
            left = {kind: len(_norms(each)) for kind, each in found.items()}
            row: dict[str, Any] = {"network": name, "precision": found["none"].precision, "batch": batch}
            row |= {"batch_norms": left["none"], "left_behind": left["behind"], "left_all": left["all"]}
            row |= {f"{kind}_ms": 1e3 * interval(each)[0] / batch for kind, each in spent.items()}
            for kind in ("none", "behind"):
                ratios = [slow / fast for slow, fast in zip(spent[kind], spent["all"], strict=True)]
                row |= zip((f"{kind}_ratio{end}" for end in ("", "_low", "_high")), interval(ratios), strict=True)
            rows.append(row)
    return rows
