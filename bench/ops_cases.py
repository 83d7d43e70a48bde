"""The operations to time: inputs of real sizes, what plain PyTorch does for the same, and the bytes that must move.

Sizes: MobileFaceNet and IR-ResNet-50 at 112x112 (batch 16, on a GPU 128), SE-ResNet-50 at 224x224 with 500 classes.
Masks are timed in float32, and in bfloat16, in which the engine evaluates gradients on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import ops

Call = Callable[..., Any]
SE_RESNET_50 = (
    *[(256, 56)] * 3,
    *[(512, 28)] * 4,
    *[(1024, 14)] * 6,
    *[(2048, 7)] * 3,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one size.

    Attributes:
        op: Its name.
        size: What the size is taken from.
        make: Fresh arguments, as keyword arguments, on a device.
        ours: The operation; gets the arguments and ``backend=``.
        eager: Plain PyTorch for the same; what ``torch.compile`` gets too.
        bytes: That must be read and written at least.
        limit: ``"copy"`` or ``"read"``: which of the machine's bandwidths is the measure.
        random: Whether eager draws its own random numbers, so that only our backends can be compared.
        tolerance: Relative, between our backends and float64 or eager; 0 asks for equal bits.
        of: The arguments whose derivative is timed, the forward pass apart; none where the operation itself is.
    """

    op: str
    size: str
    make: Callable[[str], Mapping[str, Any]]
    ours: Call
    eager: Call
    bytes: int
    limit: str = "copy"
    random: bool = False
    tolerance: float = 0.0
    of: tuple[str, ...] = ()

    def ready(self, call: Call, given: Mapping[str, Any]) -> Callable[[], Any]:
        """What is timed: the call, or the derivative of its result, which is made here."""
        if not self.of:
            return partial(call, **given)
        leaves: list[Tensor] = []

        def leaf(value: Tensor) -> Tensor:
            leaves.append(value.detach().clone().requires_grad_(True))
            return leaves[-1]

        def leafy(value: Any) -> Any:
            return [leaf(v) for v in value] if isinstance(value, list) else leaf(value)

        with torch.enable_grad():
            made = call(**{name: leafy(value) if name in self.of else value for name, value in given.items()})
        results = [made] if isinstance(made, Tensor) else list(made)
        upstream = [torch.linspace(-1, 2, r.numel(), device=r.device).view(r.shape).to(r) for r in results]
        return lambda: torch.autograd.grad(results, leaves, upstream, retain_graph=True)


def _rand(*shape: int, device: str, last: bool = True) -> Tensor:
    x = torch.rand(*shape, device=device)
    return x.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else x


def _eager_sign_step(x: Tensor, grad: Tensor, origin: Tensor, alpha: float, eps: float) -> Tensor:
    moved = x + alpha * grad.sign()
    return x.copy_(torch.min(torch.max(moved, origin - eps), origin + eps).clamp(0, 1))


def _eager_momentum_step(
    x: Tensor, grad: Tensor, origin: Tensor, velocity: Tensor, alpha: float, eps: float, mu: float
) -> Tensor:
    velocity.mul_(mu).add_(grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True))
    moved = x + alpha * velocity.sign()
    return x.copy_(torch.min(torch.max(moved, origin - eps), origin + eps).clamp(0, 1))


def _step_arguments(n: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        shape = (n, 3, 112, 112)
        return {
            "x": _rand(*shape, device=device),
            "grad": _rand(*shape, device=device) - 0.5,
            "origin": _rand(*shape, device=device),
            "alpha": 1 / 255,
            "eps": 8 / 255,
        }

    return make


def _momentum_arguments(n: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        given = dict(_step_arguments(n)(device))
        return {**given, "velocity": torch.zeros_like(given["x"]), "mu": 1.0}

    return make


def _noise_arguments(n: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        return {"x": _rand(n, 3, 112, 112, device=device), "ids": torch.arange(n, device=device)}

    return make


def _dropout_arguments(
    n: int, c: int, s: int, dtype: torch.dtype, *, affine: bool
) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        given = {"x": (_rand(n, c, s, s, device=device) - 0.3).to(dtype), "ids": torch.arange(n, device=device)}
        more = {name: torch.rand(c, device=device) for name in ("scale", "shift", "slope")} if affine else {}
        return {**given, **more}

    return make


def _dropped(x: Tensor, ids: Tensor, *, backend: str | None = None) -> Tensor:
    return ops.feature_dropout(x, rate=0.1, seed=7, ids=ids, tick=3, layer=2, backend=backend)


def _eager_dropped(x: Tensor, ids: Tensor) -> Tensor:
    return F.dropout(x, 0.1)


def _dropped_activated(x: Tensor, ids: Tensor, *, backend: str | None = None, **affine: Tensor) -> Tensor:
    return ops.feature_dropout_bn_prelu(x, rate=0.1, seed=7, ids=ids, tick=3, layer=2, **affine, backend=backend)


def _eager_dropped_activated(x: Tensor, ids: Tensor, scale: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    scale, shift, slope = (value.to(x.dtype) for value in (scale, shift, slope))  # as in a network of that type
    return F.prelu(F.dropout(x, 0.1) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), slope)


def _activation_arguments(n: int, c: int, s: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        x = (_rand(n, c, s, s, device=device) - 0.7).bfloat16()
        more = {name: torch.rand(c, device=device) for name in ("shift", "slope")}
        return {"x": x, "scale": torch.ones(c, device=device), **more}

    return make


def _eager_activated(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x + shift.to(x).view(1, -1, 1, 1), slope.to(x))


def _noised(kind: str) -> Call:
    def call(x: Tensor, ids: Tensor, *, backend: str | None = None) -> Tensor:
        return ops.add_noise_(x, scale=0.1, seed=7, ids=ids, kind=kind, backend=backend)

    return call


def _eager_uniform(x: Tensor, ids: Tensor) -> Tensor:
    return x.add_((torch.rand_like(x) * 2 - 1) * 0.1).clamp_(0, 1)


def _eager_gaussian(x: Tensor, ids: Tensor) -> Tensor:
    return x.add_(torch.randn_like(x) * 0.1).clamp_(0, 1)


def _maps(n: int) -> Callable[[str], Mapping[str, Any]]:
    return lambda device: {"maps": [_rand(n, c, s, s, device=device) for c, s in SE_RESNET_50]}


def _maps_and_centroids(n: int, k: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        return {**_maps(n)(device), "centroids": [torch.rand(k, c, device=device) for c, _ in SE_RESNET_50]}

    return make


def _features_and_centroids(n: int, k: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        features = [torch.rand(n, c, device=device) for c, _ in SE_RESNET_50]
        return {"features": features, "centroids": [torch.rand(k, c, device=device) for c, _ in SE_RESNET_50]}

    return make


def _eager_pool(maps: list[Tensor]) -> list[Tensor]:
    return [m.mean((2, 3)) for m in maps]


def _eager_distances(features: list[Tensor], centroids: list[Tensor]) -> Tensor:
    return torch.stack([torch.cdist(f, c) for f, c in zip(features, centroids, strict=True)], 1)


def _eager_pooled_distances(maps: list[Tensor], centroids: list[Tensor]) -> Tensor:
    return _eager_distances(_eager_pool(maps), centroids)


def _eager_relative(features: list[Tensor], centroids: list[Tensor]) -> Tensor:
    distances = _eager_distances(features, centroids)
    own = distances[:, -1].argmin(1)[:, None, None].expand(-1, distances.shape[1], 1)
    mine, other, others = distances.gather(2, own), distances.scatter(2, own, float("inf")), distances.shape[2] - 1
    a, least, total = mine[..., 0], other.amin(2), distances.scatter(2, own, 0.0).sum(2)
    return torch.stack([a, least, a / (a + least), (other < mine).sum(2) / others, a - total / others], 2)


def _eager_pooled_relative(maps: list[Tensor], centroids: list[Tensor]) -> Tensor:
    return _eager_relative(_eager_pool(maps), centroids)


def _neighbours(n: int, k: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        return {
            "distances": torch.rand(n, k, device=device).sort(1).values + 0.1,
            "labels": torch.randint(0, 500, (n, k), device=device),
            "predicted": torch.randint(0, 500, (n,), device=device),
        }

    return make


def _eager_knn(distances: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
    weight = 1 / distances**2
    return (weight * (labels == predicted[:, None])).sum(1) / weight.sum(1)


def _inverse_square(distances: Tensor, labels: Tensor, predicted: Tensor, *, backend: str | None = None) -> Tensor:
    return ops.knn_score(distances, labels, predicted, weighting="inverse_square", backend=backend)


_UNMASKED = "feature_dropout_bn_prelu (no mask, bfloat16)"
_DERIVATIVES = {
    **dict.fromkeys(("box_blur", "feature_dropout", "feature_dropout_bn_prelu", _UNMASKED), "x"),
    **dict.fromkeys(("average_pool", "pooled_centroid_distances", "pooled_relative_distances"), "maps"),
    **dict.fromkeys(("centroid_distances", "relative_distances"), "features"),
}


def _derivative(case: Case) -> Case:
    # eager's own derivative of a distance has fewer digits than ours
    return replace(case, op=f"{case.op} (derivative)", of=(_DERIVATIVES[case.op],), tolerance=max(case.tolerance, 1e-4))


def _gallery(n: int, k: int) -> Callable[[str], Mapping[str, Any]]:
    def make(device: str) -> Mapping[str, Any]:
        return {
            name: [F.normalize(torch.randn(m, 128, device=device))] for name, m in (("features", n), ("centroids", k))
        }

    return make


def cases(device: str) -> tuple[Case, ...]:
    """Every case, in the order of the table; on a GPU larger batches, beyond its cache."""
    found: list[Case] = []
    on_gpu = device.startswith("cuda")
    for n in (256, 2048) if on_gpu else (16, 256):
        pixels = n * 3 * 112 * 112
        case = partial(Case, size=f"{n} faces of 112x112")
        step, momentum, noise = _step_arguments(n), _momentum_arguments(n), _noise_arguments(n)
        found += [
            case(op="sign_step_", make=step, ours=ops.sign_step_, eager=_eager_sign_step, bytes=16 * pixels),
            case(
                op="momentum_step_",
                make=momentum,
                ours=ops.momentum_step_,
                eager=_eager_momentum_step,
                bytes=24 * pixels,  # the gradient once; forms of two launches read it twice
                tolerance=1e-5,
            ),
            *(
                case(
                    op=f"add_noise_ ({kind})",
                    make=noise,
                    ours=_noised(kind),
                    eager=eager,
                    bytes=8 * pixels,
                    random=True,
                    tolerance=tolerance,
                )
                for kind, eager, tolerance in (("uniform", _eager_uniform, 0.0), ("gaussian", _eager_gaussian, 1e-5))
            ),
            case(
                op="box_blur",
                make=lambda device, n=n: {"x": _rand(n, 3, 112, 112, device=device)},
                ours=ops.box_blur,
                eager=lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
                bytes=8 * pixels,
                tolerance=1e-5,
            ),
        ]
    n = 128 if on_gpu else 16
    networks = (("MobileFaceNet", 128, 56), ("IR-ResNet-50", 64, 112))
    for (model, c, s), dtype in itertools.product(networks, (torch.float32, torch.bfloat16)):
        moved, kind = 2 * dtype.itemsize * n * c * s * s, ", bf16" if dtype is torch.bfloat16 else ""
        case = partial(Case, size=f"{model}, {n} x {c} x {s} x {s}{kind}")
        found += [
            case(
                op="feature_dropout",
                make=_dropout_arguments(n, c, s, dtype, affine=False),
                ours=_dropped,
                eager=_eager_dropped,
                bytes=moved,
                random=True,
            ),
            case(
                op="feature_dropout_bn_prelu",
                make=_dropout_arguments(n, c, s, dtype, affine=True),
                ours=_dropped_activated,
                eager=_eager_dropped_activated,
                bytes=moved,
                random=True,
                tolerance=1e-5,
            ),
            case(
                op=_UNMASKED,
                make=_activation_arguments(n, c, s),
                ours=ops.feature_dropout_bn_prelu,
                eager=_eager_activated,
                bytes=moved // 2,
                tolerance=3e-2,  # eager rounds the sum with the shift, and so the sign of some
            ),
        ]
    activations = sum(c * s * s for c, s in SE_RESNET_50)
    templates = 500 * sum(c for c, _ in SE_RESNET_50)
    for n in (1, 8, 64) if on_gpu else (1, 8):
        features, maps = _features_and_centroids(n, 500), _maps_and_centroids(n, 500)
        found += [
            Case(
                op=op,
                size=f"SE-ResNet-50, 16 layers, 500 classes, batch {n}",
                make=make,
                ours=getattr(ops, op),
                eager=eager,
                bytes=4 * values,
                limit="read",
                tolerance=1e-4,
            )
            for op, make, eager, values in (
                ("average_pool", _maps(n), _eager_pool, n * activations),
                ("centroid_distances", features, _eager_distances, templates),
                ("pooled_centroid_distances", maps, _eager_pooled_distances, n * activations + templates),
                ("relative_distances", features, _eager_relative, templates),
                ("pooled_relative_distances", maps, _eager_pooled_relative, n * activations + templates),
            )
        ]
    found += [
        Case(
            op=op,
            size=f"{k:,} templates of 128 numbers, batch 32",
            make=_gallery(32, k),
            ours=getattr(ops, op),
            eager=eager,
            bytes=4 * 128 * k,
            limit="read",
            tolerance=1e-4,
        )
        for op, eager in (("centroid_distances", _eager_distances), ("relative_distances", _eager_relative))
        for k in (158, 10_000)
    ]
    found.append(
        Case(
            op="knn_score",
            size="4,096 queries, k = 1,000",
            make=_neighbours(4096, 1000),
            ours=_inverse_square,
            eager=_eager_knn,
            bytes=12 * 4096 * 1000,
            limit="read",
            tolerance=1e-5,
        )
    )
    return tuple(found) + tuple(_derivative(case) for case in found if case.op in _DERIVATIVES)
