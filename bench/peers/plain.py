"""The published loops in plain PyTorch, as a careful user writes them for a batch: frozen weights, no step wasted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.peers.calls import Call, Given, Network, Setting
from bench.peers.versions import peer_versions
from bench.surrogates import store_masks
from fastadv.surrogates import FeatureDropout

NAME = "plain loop"


def missing() -> None:
    """It is always here."""


def version() -> str | None:
    """Of PyTorch."""
    return peer_versions()["torch"]


def _ascend(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, s: Setting, momentum: bool = False) -> Tensor:
    """Signed steps in the ball, with MI-FGSM's velocity or without."""
    low, high = (x - s.eps).clamp(min=0), (x + s.eps).clamp(max=1)
    point, velocity = start, torch.zeros_like(x)
    for _ in range(s.steps):
        leaf = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        if momentum:
            velocity = velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            gradient = velocity
        point = torch.min(torch.max(leaf.detach() + s.step_size * gradient.sign(), low), high)
    return point


def _cross_entropy(network: Network, given: Given) -> Callable[[Tensor], Tensor]:
    return lambda images: F.cross_entropy(network(images), given.label, reduction="sum")


def bim(network: Network, given: Given, s: Setting) -> Tensor:
    """FGSM where ``s`` has one step of ``eps``."""
    return _ascend(_cross_entropy(network, given), given.x, given.x, s)


def _pgd(network: Network, given: Given, s: Setting) -> Tensor:
    start = (given.x + torch.empty_like(given.x).uniform_(-s.eps, s.eps)).clamp(0, 1)
    return _ascend(_cross_entropy(network, given), given.x, start, s)


def _mi_fgsm(network: Network, given: Given, s: Setting) -> Tensor:
    return _ascend(_cross_entropy(network, given), given.x, given.x, s, momentum=True)


def _fim(network: Network, given: Given, s: Setting) -> Tensor:
    with torch.no_grad():
        target = network(given.target)
    return _ascend(lambda images: -(network(images) - target).norm(dim=1).sum(), given.x, given.x, s)


def _dfanet_fim(network: Network, given: Given, s: Setting) -> Tensor:
    """Masks behind every convolution, drawn by the pass of the targets and used again by that of the images."""
    masked = copy.deepcopy(network)
    store_masks(masked.model.backbone, FeatureDropout().rate_for(network.model))

    def loss(images: Tensor) -> Tensor:
        with torch.no_grad():
            target = masked(given.target)
        return -(masked(images) - target).norm(dim=1).sum()

    return _ascend(loss, given.x, given.x, s)


def _margin(logits: Tensor, label: Tensor) -> Tensor:
    """``Z_y - max_{i != y} Z_i``."""
    own = label[:, None]
    others = logits.scatter(1, own, -math.inf)
    return logits.gather(1, own).squeeze(1) - others.amax(1)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _carlini_wagner(network: Network, given: Given, s: Setting) -> Tensor:
    """Adam in tanh space, a binary search for each image's constant; a run ends when no image makes progress."""
    x, label = given.x, given.label
    w_origin = torch.atanh((2 * x - 1) * (1 - 1e-6))
    constant = torch.ones(len(x), device=x.device)
    low, high = torch.zeros_like(constant), torch.full_like(constant, math.inf)
    best, shortest = x.clone(), torch.full_like(constant, math.inf)
    for _ in range(s.searches):
        w = w_origin.clone().requires_grad_(True)
        adam = torch.optim.Adam([w], lr=0.01)
        found, before = torch.zeros_like(label, dtype=torch.bool), math.inf
        for step in range(s.steps):
            point = (torch.tanh(w) + 1) / 2
            margin = _margin(network(point), label)
            squared = (point - x).flatten(1).square().sum(1)
            loss = squared + constant * margin.clamp(min=0)
            with torch.no_grad():
                better = (margin < 0) & (squared < shortest)
                best = torch.where(_each(better), point, best)
                shortest = torch.where(better, squared, shortest)
                found |= margin < 0
                if step % max(1, s.steps // 10) == 0:
                    if float(loss.sum()) > 0.9999 * before:
                        break
                    before = float(loss.sum())
            (w.grad,) = torch.autograd.grad(loss.sum(), w)
            adam.step()
        high = torch.where(found, torch.minimum(high, constant), high)
        low = torch.where(found, low, torch.maximum(low, constant))
        constant = torch.where(high < math.inf, (low + high) / 2, constant * 10)
    return best.detach()


def _deepfool(network: Network, given: Given, s: Setting) -> Tensor:
    """One forward pass and a backward pass for each candidate; images that are done leave the batch."""
    x, label, candidates, overshoot = given.x, given.label, 10, 0.02
    result, total = x.clone(), torch.zeros_like(x)
    left = torch.arange(len(x), device=x.device)
    for _ in range(s.steps):
        point = result[left].requires_grad_(True)
        logits = network(point)
        own = label[left][:, None]
        gaps = (
            logits.gather(1, own)
            - logits.scatter(1, own, -math.inf).topk(min(candidates, logits.shape[1]) - 1, dim=1).values
        )
        going = gaps[:, 0] >= 0
        if not bool(going.any()):
            break
        gradients = torch.stack(
            [torch.autograd.grad(-gap.sum(), point, retain_graph=True)[0] for gap in gaps.unbind(1)], 1
        )
        norms = gradients.flatten(2).norm(dim=2)
        distances = gaps.detach() / norms
        nearest = distances.argmin(1)
        row = torch.arange(len(left), device=x.device)
        length = (distances[row, nearest] + 1e-4) / norms[row, nearest]
        move = _each(length) * gradients[row, nearest]
        left, move = left[going], move[going]
        total[left] += move
        result[left] = (x[left] + (1 + overshoot) * total[left]).clamp(0, 1)
    return result


ATTACKS: Mapping[str, Call] = MappingProxyType(
    {
        "fgsm": bim,
        "pgd": _pgd,
        "mi-fgsm": _mi_fgsm,
        "fim": _fim,
        "dfanet-fim": _dfanet_fim,
        "cw-l2": _carlini_wagner,
        "deepfool": _deepfool,
    }
)
