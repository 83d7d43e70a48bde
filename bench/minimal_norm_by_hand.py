"""C&W-L2 and DeepFool as one would write them for a batch: the published loops in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NAME = "by hand"


def missing() -> None:
    """It is always here."""


def _margin(logits: Tensor, label: Tensor) -> Tensor:
    """``Z_y - max_{i != y} Z_i``."""
    own = label[:, None]
    others = logits.scatter(1, own, -math.inf)
    return logits.gather(1, own).squeeze(1) - others.amax(1)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def carlini_wagner(model: nn.Module, x: Tensor, label: Tensor, *, searches: int, steps: int) -> Tensor:
    """Adam in tanh space, a binary search for each image's constant; a run ends when no image makes progress."""
    w_origin = torch.atanh((2 * x - 1) * (1 - 1e-6))
    constant = torch.ones(len(x), device=x.device)
    low, high = torch.zeros_like(constant), torch.full_like(constant, math.inf)
    best, shortest = x.clone(), torch.full_like(constant, math.inf)
    for _ in range(searches):
        w = w_origin.clone().requires_grad_(True)
        adam = torch.optim.Adam([w], lr=0.01)
        found, before = torch.zeros_like(label, dtype=torch.bool), math.inf
        for step in range(steps):
            point = (torch.tanh(w) + 1) / 2
            margin = _margin(model(point), label)
            squared = (point - x).flatten(1).square().sum(1)
            loss = squared + constant * margin.clamp(min=0)
            with torch.no_grad():
                better = (margin < 0) & (squared < shortest)
                best = torch.where(_each(better), point, best)
                shortest = torch.where(better, squared, shortest)
                found |= margin < 0
                if step % max(1, steps // 10) == 0:
                    if float(loss.sum()) > 0.9999 * before:
                        break
                    before = float(loss.sum())
            (w.grad,) = torch.autograd.grad(loss.sum(), w)
            adam.step()
        high = torch.where(found, torch.minimum(high, constant), high)
        low = torch.where(found, low, torch.maximum(low, constant))
        constant = torch.where(high < math.inf, (low + high) / 2, constant * 10)
    return best.detach()


def deepfool(
    model: nn.Module, x: Tensor, label: Tensor, *, steps: int = 50, candidates: int = 10, overshoot: float = 0.02
) -> Tensor:
    """One forward pass and a backward pass for each candidate; images that are done leave the batch."""
    result, total = x.clone(), torch.zeros_like(x)
    left = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        point = result[left].requires_grad_(True)
        logits = model(point)
        own = label[left][:, None]
        gaps = logits.gather(1, own) - logits.scatter(1, own, -math.inf).topk(candidates - 1, dim=1).values
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
