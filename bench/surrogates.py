"""What a random surrogate costs: a DFANet tick against the same evaluations without masks, and what an ensemble costs.

A tick here is what the engine evaluates for a batch: the target forward, the source forward, and the gradient.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.measure import synchronise
from fastadv.attacks import Impersonate, e_fim, fim
from fastadv.engine import Engine, run
from fastadv.models import FaceModel, load, prepare
from fastadv.surrogates import FeatureDropout, InputDiversity, StepKey

BATCH = 16
_SECONDS = {"cpu": 40, "cuda": 5}  # of a network and precision: the differences are small, and a CPU's times scatter
Forward = Callable[[Tensor], Tensor]


class _Stored(nn.Module):
    """A mask made by ``rand`` behind a convolution, as it is usually written; or PyTorch's own dropout."""

    def __init__(self, convolution: nn.Conv2d, rate: float, kind: str) -> None:
        super().__init__()
        self.convolution, self.rate, self.kind = convolution, rate, kind
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        if self.kind == "dropout":
            return nn.functional.dropout(y, self.rate, training=True)
        if not torch.is_grad_enabled():  # the target comes first, and the source takes its mask
            self.mask = (torch.rand_like(y) >= self.rate).to(y.dtype)
        assert self.mask is not None
        return y * self.mask


def by_hooks(model: FaceModel, precision: str, rate: float, kind: str) -> FaceModel:
    """The prepared model with unfused masks, batch norms left as they are."""
    ready = prepare(model, precision=precision, fold=False)
    store_masks(ready.backbone, rate, kind)
    return ready


def store_masks(backbone: nn.Module, rate: float, kind: str = "rand") -> None:
    """Put a mask behind every convolution, in place: one that a pass without gradients draws, and the next one uses."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, _Stored(module, rate, kind).eval())


def tick(forward: Forward, source: Tensor, target: Tensor, seen: Forward | None = None) -> Tensor:
    """One evaluation of a pair by one subnetwork; returns the gradient."""
    with torch.no_grad():
        reference = forward(target)
    leaf = source.detach().requires_grad_(True)
    loss = -torch.linalg.vector_norm(forward(leaf if seen is None else seen(leaf)) - reference, dim=1).sum()
    return torch.autograd.grad(loss, leaf)[0]


def _interleaved(
    calls: Mapping[str, Callable[[], Any]], device: str, *, rounds: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each call, in turn, so that a drift of the machine meets all alike; more rounds until ``seconds``."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    done = -1  # the first round warms up
    while done < rounds or time.perf_counter() - started < seconds:
        done += 1
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            synchronise(device)
            if done:
                found[name].append(time.perf_counter() - begin)
    return found


def _interval(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Where the ratio of the medians lies in 90 of 100 draws of rounds, with replacement."""
    both = np.array([seconds, base])
    drawn = np.random.default_rng(0).integers(len(base), size=(2000, len(base)))
    low, high = np.quantile(np.divide(*np.median(both[:, drawn], axis=2)), (0.05, 0.95))
    return float(low), float(high)


def _peak(call: Callable[[], Any], device: str) -> int:
    """Bytes that autograd keeps for the backward pass (CPU), or the allocator's peak (CUDA)."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(kept.values())


def _networks(data: Path | None, device: str) -> dict[str, FaceModel]:
    found = {"iresnet50 (random weights)": load("iresnet50", random_weights_seed=0, device=device)}
    if data is not None:
        files = {
            "mobilefacenet": "mobilefacenet_relu6_ms1m_arcface.safetensors",
            "mobileface_v2": "mobileface_v2.safetensors",
            "edgeface_xs": "edgeface_xs_cosface.safetensors",
        }
        known = {name: load(name, weights=data / "weights" / file, device=device) for name, file in files.items()}
        found = {**known, **found}
    return found


def masks(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """A DFANet tick in milliseconds an image, and its ratio to the same evaluations without masks, in one run."""
    rows: list[Mapping[str, Any]] = []
    for name, model in _networks(data, device).items():
        generator = torch.Generator().manual_seed(0)
        images = [
            torch.rand(BATCH, 3, *model.input_size, generator=generator)
            .to(device)
            .contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        ]
        ids = torch.arange(BATCH, device=device)
        key = StepKey(seed=1, ids=ids, ticks=torch.zeros_like(ids))
        rate = FeatureDropout().rate_for(model)
        for precision in ("fp32", "bf16"):
            plain = prepare(model, precision=precision)
            masked = FeatureDropout().bind(model, precision=precision)
            hooked = {kind: by_hooks(model, precision, rate, kind) for kind in ("dropout", "rand")}
            # the masks are right before they are timed: the same subnetwork twice, and rate 0 is the bare model
            assert torch.equal(masked(images[0], key), masked(images[0], key))
            free = FeatureDropout(rate=0.0).bind(model, precision=precision)
            assert torch.equal(free(images[0], key), plain(images[0]))
            calls: dict[str, Callable[[], Any]] = {
                "FIM tick (target embedded once)": partial(_fim_tick, plain, images[0], plain(images[1]).detach()),
                "no masks": partial(tick, plain, *images),
                "fused masks": partial(tick, partial(masked, key=key), *images),
                "fused masks, input diversity": partial(
                    tick, partial(masked, key=key), *images, partial(InputDiversity(), key=key)
                ),
                "torch dropout": partial(tick, hooked["dropout"], *images),
                "rand masks, stored": partial(tick, hooked["rand"], *images),
            }
            if quick:
                calls.pop("rand masks, stored")
            wanted = 0 if quick else _SECONDS[device.split(":")[0]]
            spent = _interleaved(calls, device, rounds=2 if quick else 5, seconds=wanted)
            base = statistics.median(spent["no masks"])
            memory = {label: _peak(call, device) for label, call in calls.items()}
            for label, seconds in spent.items():
                low, *_, high = statistics.quantiles(seconds, n=5)
                ratios = [a / b for a, b in zip(seconds, spent["no masks"], strict=True)]
                least, most = _interval(seconds, spent["no masks"])
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "run": label,
                        "drop_rate": rate,
                        "ms_per_image": 1e3 * statistics.median(seconds) / BATCH,
                        "ms_q20": 1e3 * low / BATCH,
                        "ms_q80": 1e3 * high / BATCH,
                        "ratio_to_no_masks": statistics.median(seconds) / base,
                        "ratio_q05": least,
                        "ratio_q95": most,
                        "ratio_paired": statistics.median(ratios),
                        "rounds": len(seconds),
                        "memory_ratio": memory[label] / memory["no masks"],
                    }
                )
    return rows


def ensemble(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Whole attacks on an ensemble of K networks against the sum of the attacks on each: at most 1 is the aim."""
    networks = _networks(data, device)
    names = [name for name in networks if name != "iresnet50 (random weights)"] or ["iresnet50 (random weights)"] * 2
    models = [networks[name] for name in names]
    generator = torch.Generator().manual_seed(0)
    x, targets = (torch.rand(BATCH, 3, 112, 112, generator=generator) for _ in range(2))
    goal, steps = Impersonate(targets, threshold=0.999), 2 if quick else 10
    single, together = fim(eps=8 / 255, steps=steps), e_fim(others=models[1:], eps=8 / 255, steps=steps)
    calls = {
        name: partial(run, single, goal, model, x, engine=Engine(batch=BATCH, precision="fp32"))
        for name, model in zip(names, models, strict=True)
    }
    calls["ensemble of them"] = partial(run, together, goal, models[0], x, engine=Engine(batch=BATCH, precision="fp32"))
    spent = {k: statistics.median(v) for k, v in _interleaved(calls, device, rounds=1 if quick else 5).items()}
    alone = sum(seconds for name, seconds in spent.items() if name != "ensemble of them")
    return [
        {
            "model": name,
            "precision": "fp32",
            "run": f"FIM, {steps} steps, judging included",
            "ms_per_image": 1e3 * seconds / BATCH,
            "ratio_to_sum": seconds / alone,
        }
        for name, seconds in spent.items()
    ]


def _fim_tick(model: FaceModel, source: Tensor, reference: Tensor) -> Tensor:
    leaf = source.detach().requires_grad_(True)
    loss = -torch.linalg.vector_norm(model(leaf) - reference, dim=1).sum()
    return torch.autograd.grad(loss, leaf)[0]
