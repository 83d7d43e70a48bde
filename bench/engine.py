"""The engine against what one would write by hand."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import synchronise
from fastadv import attacks
from fastadv.attacks import Goal, Impersonate, Linf, Recipe, SignGradient
from fastadv.data import LFW
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.engine.carried import Carried
from fastadv.engine.evaluate import outputs_of
from fastadv.engine.job import InFlight
from fastadv.engine.slots import Slots
from fastadv.engine.transfers import HostCopy
from fastadv.models import FaceModel, load, prepare
from fastadv.models.capture import Captured
from fastadv.models.frozen_activation import FrozenPReLU
from fastadv.surrogates import BoundSurrogate, Member

EPS, STEPS, ALPHA, THRESHOLD = 8 / 255, 20, 1 / 255, 0.31
WEIGHTS = "mobilefacenet_relu6_ms1m_arcface.safetensors"
BATCH = {"cpu": 16, "cuda": 128}  # by hand and in the engine alike


def _timed(device: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    synchronise(device)
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    synchronise(device)
    return time.perf_counter() - begin, result


def by_hand(model: FaceModel, x: Tensor, targets: Tensor, *, batch: int) -> tuple[Tensor, Tensor]:
    """FIM as one would write it: eager float32, fixed steps, fixed batches; returns 8-bit images and similarities."""
    images, similar = [], []
    for begin in range(0, len(x), batch):
        clean, target = x[begin : begin + batch], targets[begin : begin + batch]
        with torch.no_grad():
            wanted = model(target)
        trial = clean.clone()
        for _ in range(STEPS):
            trial.requires_grad_(True)
            loss = -(model(trial) - wanted).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(loss, trial)
            trial = trial.detach() + ALPHA * gradient.sign()
            trial = torch.min(torch.max(trial, clean - EPS), clean + EPS).clamp(0, 1)
        rounded = torch.round(trial * 255) / 255
        with torch.no_grad():
            similar.append((model(rounded) * wanted).sum(1))
        images.append(rounded)
    return torch.cat(images), torch.cat(similar)


def by_engine(
    model: FaceModel, x: Tensor, targets: Tensor, threshold: float, engine: Engine, *, stop: bool
) -> tuple[Tensor, Tensor, float]:
    """The same with the engine: 8-bit images, similarities, and the mean number of evaluations."""
    machine = SignGradient(budget=Linf(EPS), steps=STEPS, step_size=ALPHA, stop_at_success=stop, margin=0.005 * stop)
    goal = Impersonate(targets, threshold=threshold)
    jobs = (Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in range(len(x)))
    found = {int(r.name): r for r in stream_jobs(Recipe(machine), jobs, model, engine=engine)}
    done = [found[i] for i in range(len(x))]
    similar = torch.tensor([r.score_after for r in done])
    return torch.stack([r.image for r in done]), similar, statistics.mean(r.ticks for r in done)


def lfw_pairs(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """Source and target crops of the first negative LFW pairs."""
    lfw = LFW(data / "lfw")
    pairs = [p for p in lfw.pairs if not p.same][:count]
    return tuple(
        torch.stack([lfw.load(n).image for n in names])
        for names in zip(*((p.first, p.second) for p in pairs), strict=True)
    )


def fim(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """FIM-20, ε = 8/255, impersonation on negative LFW pairs: seconds an image, ratios in one run, equal success."""
    assert data is not None
    rows: list[Mapping[str, Any]] = []
    kind = device.split(":")[0]
    batch = BATCH[kind]
    cases = (
        (
            "mobilefacenet",
            load("mobilefacenet", weights=data / "weights" / WEIGHTS, device=device),
            4 * batch,
            THRESHOLD,
        ),
        # no trained weights are at hand for this one: the threshold is what the loop by hand reaches on every pair
        ("iresnet50", load("iresnet50", random_weights_seed=0, device=device), batch, None),
    )
    for name, model, count, threshold in cases:
        count, repeats = (batch, 1) if quick else (count, 3 if name == "mobilefacenet" else 2)
        x, targets = (t.to(device) for t in lfw_pairs(data, count))
        model.eval()
        _, reached = by_hand(model, x[:batch], targets[:batch], batch=batch)  # warm-up too
        limit = float(reached.min()) - 1e-4 if threshold is None else threshold
        variants = {
            "fp32": (Engine(batch=batch, precision="fp32"), False),
            "bf16": (Engine(batch=batch, precision="bf16"), False),
            "fp32, stop at success": (Engine(batch=batch, precision="fp32"), True),
            "bf16, stop at success": (Engine(batch=batch, precision="bf16"), True),
        }
        times: dict[str, list[float]] = {"hand": []}
        outcome: dict[str, tuple[float, float]] = {}
        if kind == "cuda":
            variants["tf32"] = (Engine(batch=batch, precision="tf32"), False)
        for engine, stop in variants.values():  # warm-up: kernels are chosen on the first call
            by_engine(model, x[:batch], targets[:batch], limit, engine, stop=stop)
        for _ in range(repeats):
            # alternating, so that a drift of the machine meets all alike
            spent, (_, similar) = _timed(device, by_hand, model, x, targets, batch=batch)
            times["hand"].append(spent)
            outcome["hand"] = (float((similar >= limit).float().mean()), float(STEPS))
            for label, (engine, stop) in variants.items():
                spent, (images, similar, ticks) = _timed(device, by_engine, model, x, targets, limit, engine, stop=stop)
                assert float((images - x.cpu()).abs().max()) <= EPS + 1e-6
                times.setdefault(label, []).append(spent)
                outcome[label] = (float((similar >= limit).float().mean()), ticks)
        hand = statistics.median(times["hand"])
        for label, spent in times.items():
            middle = statistics.median(spent)
            rows.append(
                {
                    "model": name,
                    "run": label,
                    "images": count,
                    "batch": batch,
                    "ms_per_image": 1e3 * middle / count,
                    "ms_min": 1e3 * min(spent) / count,
                    "ms_max": 1e3 * max(spent) / count,
                    "ratio_to_hand": hand / middle,
                    "success": outcome[label][0],
                    "evaluations_per_image": outcome[label][1],
                }
            )
    return rows


def tick_and_passes(
    name: str, precision: str, *, batch: int, device: str, fuse: bool = True
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """A tick of full slots; and of the same network, on the same batch, both passes, and the forward pass alone.

    On a GPU all are recorded, so that none waits for the host. ``fuse``: see :func:`fastadv.models.prepare`.
    """
    model = prepare(load(name, random_weights_seed=0, device=device).eval(), precision=precision, fuse=fuse)
    bound = BoundSurrogate(members=(Member(model=model, masked=None),), shares=(1.0,), diversity=None, smoothing=None)
    x = torch.rand(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    reference = model(x.flip(0)).detach()
    goal: Goal = Impersonate(reference, threshold=0.99)
    slots = Slots(
        attacks.fim(steps=10_000).attack, goal, bound,
        count=batch, batch=batch, width=reference.shape[1], like=x, seed=0, capture=device != "cpu", tf32=False,
    )  # fmt: skip
    start = HostCopy(torch.zeros(batch, 3, dtype=torch.float64))
    jobs = [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in range(batch)]
    slots.fill(
        deque(
            InFlight(
                job=j,
                image=x[i],
                parts=(Carried(reference=reference[i]),),
                start=start,
                place=i,
                trial=x[i],
            )
            for i, j in enumerate(jobs)
        )
    )

    def bare() -> None:
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(outputs_of(model, goal, leaf).sum(), leaf)

    def forward() -> None:
        with torch.no_grad():
            outputs_of(model, goal, x)

    def tick() -> None:
        slots.tick(1)
        slots.take_finished(late=device.startswith("cuda"))

    return (tick, Captured(bare), Captured(forward)) if device.startswith("cuda") else (tick, bare, forward)


def compiled_passes(name: str, precision: str, *, batch: int, device: str) -> Callable[[], None]:
    """The yardstick of what is fused by hand: both passes of the network as ``torch.compile`` fuses it, recorded."""
    model = prepare(
        load(name, random_weights_seed=0, device=device).eval(), precision=precision, channels_last=False, fuse=False
    )
    for place, layer in list(model.backbone.named_modules()):
        if isinstance(layer, FrozenPReLU):
            plain = nn.PReLU(layer.num_parameters, device=device)
            plain.weight = layer.weight
            model.backbone.set_submodule(place, plain)
    model.to(memory_format=torch.channels_last)
    model.backbone.compile(dynamic=False)
    x = torch.rand(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)

    def passes() -> None:
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(model(leaf).sum(), leaf)

    return Captured(passes)


def overhead(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """A tick of full slots against the bare forward and backward pass on the same batch, alternating.

    ``apart_``: with activations that are no part of convolutions. On a GPU, ``compiled_ms`` is what the two passes take
    as ``torch.compile`` fuses them.
    """
    rows: list[Mapping[str, Any]] = []
    batch = BATCH[device.split(":")[0]]
    for name, precision, count in (
        ("mobilefacenet", "fp32", 60),
        ("mobilefacenet", "bf16", 60),
        ("iresnet50", "bf16", 20),
    ):
        calls: dict[str, Callable[[], None]] = {}
        for kind, fuse in (("", True), ("apart_", False)):
            made = tick_and_passes(name, precision, batch=batch, device=device, fuse=fuse)
            calls |= zip((f"{kind}tick_ms", f"{kind}bare_ms", f"{kind}forward_ms"), made, strict=True)
        if device.startswith("cuda"):
            calls["compiled_ms"] = compiled_passes(name, precision, batch=batch, device=device)
        spent: list[dict[str, float]] = []
        for k in range((3 if quick else count) + 2):
            order = list(calls) if k % 2 else list(calls)[::-1]
            spent.append({what: 1e3 * _timed(device, calls[what])[0] for what in order})
        del spent[:2]
        low, difference, high = statistics.quantiles((each["tick_ms"] - each["bare_ms"] for each in spent), n=4)
        medians = {what: statistics.median(each[what] for each in spent) for what in calls}
        rows.append(
            {
                "model": name,
                "precision": precision,
                "batch": batch,
                **medians,
                "own_ms": difference,
                "own_ms_q25": low,
                "own_ms_q75": high,
                "own_share": difference / medians["bare_ms"],
            }
        )
    return rows
