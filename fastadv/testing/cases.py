"""Inputs of the operations: shapes, memory orders, element types and special values, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42, -1e-42, 65504.0, 3e38)


@dataclass(kw_only=True)
class StepInputs:
    """The tensors of one call of a step operation."""

    x: Tensor
    grad: Tensor
    origin: Tensor
    velocity: Tensor
    alpha: float | Tensor
    eps: float | Tensor
    active: Tensor | None
    stats: Tensor

    def clone(self) -> StepInputs:
        """A copy that shares no memory and keeps every memory order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return StepInputs(**{k: _like(v) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """A case of ``sign_step_`` and ``momentum_step_``.

    ``layout`` is the memory order of everything; ``grad_layout`` that of the gradient and the origin, if
    another.
    """

    shape: tuple[int, ...]
    layout: str = "contiguous"
    grad_layout: str = ""
    grad_dtype: torch.dtype = torch.float32
    special: bool = False
    each: bool = False
    active: str = "none"
    seed: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """Readable, for test ids."""
        parts = ["x".join(map(str, self.shape)), self.layout, str(self.grad_dtype).removeprefix("torch.")]
        parts += [self.grad_layout] if self.grad_layout else []
        parts += [word for word, on in (("special", self.special), ("each", self.each)) if on]
        return "-".join(parts + ([f"active_{self.active}"] if self.active != "none" else []))

    def make(self, device: str = "cpu") -> StepInputs:
        """The inputs; the same values on every device."""
        draw = torch.Generator().manual_seed(self.seed + sum(self.shape))
        origin = torch.rand(self.shape, generator=draw)
        x = (origin + (torch.rand(self.shape, generator=draw) - 0.5) * 0.1).clamp(0, 1)
        grad = torch.randn(self.shape, generator=draw) * 1e-3
        velocity = torch.randn(self.shape, generator=draw)
        grad[torch.rand(self.shape, generator=draw) < 0.1] = 0.0
        if self.special and grad.numel():
            flat = grad.view(-1)
            flat[torch.randperm(flat.numel(), generator=draw)[: len(SPECIALS)]] = torch.tensor(SPECIALS)[: flat.numel()]
        images = self.shape[0]
        alpha: float | Tensor = 1 / 255
        eps: float | Tensor = 8 / 255
        if self.each:
            alpha = (torch.rand(images, generator=draw) * 0.02).to(device)
            eps = (torch.rand(images, generator=draw) * 0.1).to(device)
        active = {"none": None, "off": torch.zeros(images, dtype=torch.bool)}.get(
            self.active, torch.arange(images) % 2 == 0
        )
        other = self.grad_layout or self.layout
        return StepInputs(
            x=arrange(x, self.layout, device),
            grad=arrange(grad.to(self.grad_dtype), other, device),
            origin=arrange(origin, other, device),
            velocity=arrange(velocity, self.layout, device),
            alpha=alpha,
            eps=eps,
            active=None if active is None else active.to(device),
            stats=torch.arange(2 * images).view(images, 2).to(device),
        )


def arrange(value: Tensor, layout: str, device: str = "cpu") -> Tensor:
    """Copy ``value`` into memory in the order ``layout``.

    "contiguous"; "channels_last"; "columns" (W outside H); "offset" (contiguous, one element into a larger
    buffer, so that no address is on 16 bytes).
    """
    if layout == "contiguous":
        made = torch.empty(value.shape, dtype=value.dtype, device=device)
    elif layout == "channels_last":
        made = torch.empty(value.shape, dtype=value.dtype, device=device, memory_format=torch.channels_last)
    elif layout == "columns":
        swapped = (*value.shape[:-2], value.shape[-1], value.shape[-2])
        made = torch.empty(swapped, dtype=value.dtype, device=device).transpose(-1, -2)
    elif layout == "offset":
        made = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)[1:].view(value.shape)
    else:
        raise ValueError(f"layout is {layout!r}; expected contiguous, channels_last, columns or offset")
    return made.copy_(value)


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(value)


_HALVES = (torch.bfloat16, torch.float16)

STEP_CASES: tuple[StepCase, ...] = (
    StepCase(shape=(1, 1, 1, 1)),
    StepCase(shape=(1, 1, 1, 1), active="off"),
    StepCase(shape=(0, 3, 5, 7)),
    StepCase(shape=(2, 3, 0, 7), each=True),
    StepCase(shape=(5, 17)),
    StepCase(shape=(3, 3, 5, 7), special=True),
    StepCase(shape=(3, 3, 5, 7), layout="channels_last", special=True, active="some"),
    StepCase(shape=(2, 3, 8, 8), layout="columns", each=True),
    StepCase(shape=(2, 3, 8, 8), layout="offset", special=True),
    StepCase(shape=(2, 3, 8, 8), layout="channels_last", grad_layout="contiguous", each=True),
    StepCase(shape=(2, 3, 16, 16), layout="contiguous", grad_layout="channels_last", special=True),
    StepCase(shape=(2, 3, 27, 29), each=True, active="some"),
    StepCase(shape=(1, 3, 40, 40), special=True),
    *(StepCase(shape=(3, 3, 8, 8), grad_dtype=dtype, special=True) for dtype in _HALVES),
    *(StepCase(shape=(2, 3, 9, 11), grad_dtype=d, layout="channels_last", each=True) for d in _HALVES),
)
