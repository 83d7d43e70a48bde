"""GD-UAP: one perturbation for all images, made without any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_count
from fastadv.models import FaceModel, dataflow, prepare
from fastadv.ops import philox
from fastadv.surrogates import flow

STEPS = 40_000
"""The authors' limit of the number of steps."""

STEP_SIZE = 0.1 / 255
"""Adam's learning rate in the authors' experiments, in pixels of [0, 1]."""

_START_LAYER, _PRIOR_LAYER = 0, 1
_SATURATED, _STILL = 0.5, 1e-5


@dataclass(frozen=True, kw_only=True)
class RangePrior:
    """What is known of the images: the mean and standard deviation of their pixels.

    Attributes:
        mean: Of the red, green and blue channel, in [0, 1].
        std: Likewise, positive.
        count: How many noise images stand for the data in every step.

    Raises:
        ValueError: A field is out of range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    count: int = 8

    def __post_init__(self) -> None:
        if not (len(self.mean) == 3 and all(0 <= v <= 1 for v in self.mean)):
            raise ArgumentError(f"mean: expected three numbers in [0, 1], got {brief(self.mean)}")
        if not (len(self.std) == 3 and all(math.isfinite(v) and v > 0 for v in self.std)):
            raise ArgumentError(f"std: expected three positive numbers, got {brief(self.std)}")
        check_count("count", self.count)


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation:
    """What :func:`gd_uap` found.

    Attributes:
        delta: ``(3, H, W)`` float32 with ``|delta| <= eps``, to be added to images in [0, 1] and clipped.
        objective: Its objective, the highest of all steps.
        history: The objective before the first step and after each one.
        saturations: How often it was halved.
    """

    delta: Tensor
    objective: float
    history: tuple[float, ...]
    saturations: int


def activation_objective(activations: Sequence[Tensor]) -> Tensor:
    r"""How strongly layers fire: :math:`\sum_i \log \lVert a_i \rVert_2` for every image.

    Args:
        activations: One tensor ``(N, ...)`` for each layer.

    Returns:
        ``(N,)``, float32 or wider.

    Source:
        Mopuri et al. 2018, "Generalizable data-free objective for crafting universal adversarial perturbations", eq. 4.
    """
    total: Tensor | None = None
    for values in activations:
        wide = values.flatten(1).to(torch.promote_types(values.dtype, torch.float32))
        # the smallest number, lest a layer that is silent give the logarithm of 0
        energy = 0.5 * torch.log(wide.square().sum(1) + torch.finfo(wide.dtype).tiny)
        total = energy if total is None else total + energy
    if total is None:
        raise ArgumentError("activations: expected at least one tensor, got none")
    return total


def gd_uap(
    model: FaceModel,
    *,
    eps: float,
    seed: int,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    patience: int = 10,
    prior: RangePrior | None = None,
    precision: str = "fp32",
    on_step: Callable[[int, float], None] | None = None,
) -> UniversalPerturbation:
    r"""A universal, untargeted perturbation that over-fires the layers of a network.

    .. math:: \max_\delta \; \sum_{i} \log \lVert a_i(b + \delta) \rVert_2
              \quad\text{subject to}\quad \lVert \delta \rVert_\infty \le \epsilon

    by Adam with clipping, from a uniform random start, over the layers ``i`` that end a residual block (the sums of the
    data flow) and the convolutions outside of such blocks, with their batch norms. The base ``b`` is the pixel that the
    model normalises to zero; with a range prior, the objective is the mean over noise images, Gaussian for each pixel,
    clipped to [0, 1] and drawn anew for each step.

    A perturbation of which more than half of the pixels are at ±ε, and 1e-5 of which at most changed in a step, is
    saturated: it is halved, to have room again. **choice**: The authors stop when the fooling rate on validation images
    no longer rises; without images, the objective takes its place: it stops after ``patience`` saturations in a row
    that brought no better one.

    Args:
        model: In evaluation mode; it is prepared, and left as it is.
        eps: ε, in pixels of [0, 1].
        seed: Of the start and the noise images, in [0, 2**64).
        steps: At most; the authors' limit, 40,000, is the default. Below 2**20.
        step_size: Adam's learning rate, in pixels of [0, 1].
        patience: See above.
        prior: What the images look like; None: nothing is known.
        precision: See :func:`fastadv.models.prepare`.
        on_step: Is told the number of the step and its objective, for a progress display.

    Returns:
        The iterate with the highest objective.

    Raises:
        TypeError: ``model`` is no ``FaceModel``.
        ValueError: A number is out of range, or the backbone cannot be traced or has no convolution.

    Source:
        Mopuri et al. 2018, "Generalizable data-free objective for crafting universal adversarial perturbations",
        sections 3.1 to 3.3; Zhong and Deng 2020, "Towards transferable adversarial attack against deep face
        recognition", section IV-F.
    """
    _check(eps=eps, seed=seed, steps=steps, step_size=step_size, patience=patience)
    prepared = prepare(model, precision=precision, fuse=False)  # outputs of convolutions are what is to fire
    layers = _layers(prepared)
    ids = torch.zeros(1, dtype=torch.int64, device=prepared.device)
    start = philox.uniform(seed, ids, 0, _START_LAYER, prepared.image_shape)
    delta = ((2 * start - 1) * eps).requires_grad_()
    adam = torch.optim.Adam([delta], lr=step_size, maximize=True)
    best, objective = delta.detach().clone(), -math.inf
    history: list[float] = []
    saturations = fruitless = 0
    share, best_at_saturation = 0.0, -math.inf
    for step in range(steps + 1):
        fired = activation_objective(layers(_normalised(prepared, delta, prior, seed, step))).mean()
        history.append(float(fired.detach()))
        if history[-1] > objective:
            objective = history[-1]
            best.copy_(delta.detach())
        if on_step is not None:
            on_step(step, history[-1])
        before, share = share, float((delta.detach().abs() >= eps).float().mean())
        if share > _SATURATED and abs(share - before) < _STILL:
            saturations += 1
            fruitless = 0 if objective > best_at_saturation else fruitless + 1
            best_at_saturation = objective
            if fruitless >= patience:
                break
            with torch.no_grad():
                delta.div_(2)
            continue
        (delta.grad,) = torch.autograd.grad(fired, delta)
        adam.step()
        with torch.no_grad():
            delta.clamp_(-eps, eps)
    return UniversalPerturbation(delta=best[0], objective=objective, history=tuple(history), saturations=saturations)


def check_steps(steps: int) -> None:
    """Refuse a number of steps that is none, or 2**20 and more.

    Raises:
        ValueError: It is one.
    """
    check_count("steps", steps)
    if steps >= philox.TICKS:
        raise ArgumentError(f"steps: expected a number below 2**20, got {steps}")


def _check(*, eps: float, seed: int, steps: int, step_size: float, patience: int) -> None:
    check_steps(steps)
    for name, value, least in (("patience", patience, 1), ("seed", seed, 0)):
        check_count(name, value, least=least)
    for name, number in (("eps", eps), ("step_size", step_size)):
        if not (math.isfinite(number) and 0 < number <= 1):
            raise ArgumentError(f"{name}: expected a number in (0, 1], in pixels of [0, 1], got {brief(number)}")


def _layers(model: FaceModel) -> nn.Module:
    """The backbone with other outputs: its sums of residual blocks and its convolutions outside of such blocks."""
    graph = flow.trace_model(model, gradients=True)
    if graph is None:
        raise ArgumentError(
            f"model: expected a backbone that can be traced, to find its layers, got {model.name!r}, which cannot"
        )
    blocks = flow.residuals(model.backbone, graph)
    inside = {node for block in blocks for node in block.inside}
    sums = {block.total for block in blocks}
    modules = dict(model.backbone.named_modules(remove_duplicate=False))

    def chosen(node: fx.Node) -> bool:
        convolution = node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d)
        return node not in inside and (node in sums or convolution)

    wanted = [node for node in graph.nodes if chosen(node)]
    if not wanted:
        raise ArgumentError(f"model: expected a backbone with convolutions to fire, got {model.name!r} without")
    (end,) = (node for node in graph.nodes if node.op == "output")
    graph.erase_node(end)
    graph.output(tuple(wanted))
    made = dataflow.GraphModule(model.backbone, graph)
    graph.eliminate_dead_code()
    made.recompile()
    return made


def _normalised(model: FaceModel, delta: Tensor, prior: RangePrior | None, seed: int, step: int) -> Tensor:
    """What the backbone sees: the perturbation on the base."""
    base = model.mean
    if prior is not None:
        ids = torch.arange(prior.count, device=delta.device)
        mean, std = (torch.tensor(v, device=delta.device).view(1, -1, 1, 1) for v in (prior.mean, prior.std))
        base = (mean + std * philox.normal(seed, ids, step, _PRIOR_LAYER, tuple(delta.shape[1:]))).clamp_(0, 1)
    images = (base + delta).to(memory_format=torch.channels_last)
    return model.normalised(images)
