"""Small networks of convolutions, each with a PReLU and the maximum of neighbours: those that detect faces.

On a CPU one compiled call for a whole network, else PyTorch operations. Without derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, native_only

_CHANNELS = 4096  # at most
_LANES = 16  # channels are filled up with zeros to a multiple of so many


@dataclass(frozen=True, kw_only=True)
class ConvPrelu:
    """A layer: ``max_pool2d(prelu(conv2d(x, weight, bias), slopes), pool, 2, ceil_mode=True)``.

    A linear map of a whole map is one whose weights are as large as it.

    Attributes:
        weight: (K, C, S, S) float32.
        bias: (K,) float32.
        slopes: (K,) float32; None: without activation.
        pool: 2 or 3; None: nothing is pooled.
    """

    weight: Tensor
    bias: Tensor
    slopes: Tensor | None = None
    pool: int | None = None

    def __post_init__(self) -> None:
        given = {"weight": self.weight, "bias": self.bias, "slopes": self.slopes}
        for name, tensor in given.items():
            if tensor is not None or name != "slopes":
                checks.tensor_of(name, tensor, checks.FLOAT)
        shape = tuple(self.weight.shape)
        if len(shape) != 4 or shape[2] != shape[3] or not (min(shape) >= 1 and max(shape) <= _CHANNELS):
            raise ArgumentError(f"weight: expected shape (K, C, S, S), 1 to {_CHANNELS} each, got {shape}")
        for name, tensor in given.items():
            if tensor is not None:
                checks.on_device(name, tensor, self.weight, "weight")
                if name != "weight" and tensor.shape != shape[:1]:
                    raise ArgumentError(
                        f"{name}: expected one for each of {shape[0]} channels, got {tuple(tensor.shape)}"
                    )
        if self.pool not in (None, 2, 3):
            raise ArgumentError(f"pool: expected 2, 3 or None, got {brief(self.pool)}")

    def side(self, length: int) -> int:
        """Pixels along a side of the result, by those of a map's; 0 or fewer if the map is too small."""
        made = length - self.weight.shape[2] + 1
        return made if self.pool is None else (made + 3 - self.pool) // 2 if made > 1 else 0


class ConvPreluNetwork:
    """Layers one after the other, fixed.

    The compiled form adds the products of an output in the order of the weights' rows, columns and channels, none of
    them rounded before it is added: the bits of an output depend on the pixels that it sees, not on what is computed
    beside it, the size of the map, the instruction set or the number of threads. The other form has the bits of
    ``conv2d``.

    Args:
        layers: From the first to the last, each with as many channels as the one before gives.

    Raises:
        TypeError, ValueError: There is no layer, or one does not fit the one before.
    """

    def __init__(self, layers: Sequence[ConvPrelu]) -> None:
        self._layers = tuple(layers)
        for k, layer in enumerate(self._layers):
            if not isinstance(layer, ConvPrelu):
                raise ArgumentTypeError(f"layers[{k}]: expected a ConvPrelu, got {brief(layer)}")
            before = self._layers[k - 1].weight if k else layer.weight.transpose(0, 1)
            checks.on_device(f"layers[{k}]", layer.weight, self._layers[0].weight, "layers[0]")
            if layer.weight.shape[1] != before.shape[0]:
                raise ArgumentError(
                    f"layers[{k}]: expected weights of {before.shape[0]} channels, which the layer before gives, "
                    f"got {layer.weight.shape[1]}"
                )
        if not self._layers:
            raise ArgumentError("layers: expected at least one, got none")
        self._packed: tuple[Tensor, ...] = ()
        self._native: list[int] = []
        if self._layers[0].weight.device.type == "cpu" and _native.has("cpu_conv_prelu"):
            self._packed = tuple(map(_packed, self._layers))  # the compiled part knows addresses only
            for layer, numbers in zip(self._layers, self._packed, strict=True):
                channels, _, side, _ = layer.weight.shape
                self._native += [numbers.data_ptr(), channels, side, layer.pool or 1]

    @property
    def compiled(self) -> bool:
        """Whether a call without a named backend takes the compiled form."""
        return bool(self._native)

    def __call__(self, x: Tensor, *, backend: str | None = None) -> Tensor:
        """The network's result.

        Args:
            x: (N, C, H, W) float32.
            backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

        Returns:
            (N, K, h, w) float32; channels last in the compiled form.

        Raises:
            TypeError, ValueError: ``x`` has another type, shape or device, or is too small for the layers.
            RuntimeError: It requires grad.
            BackendUnavailable: The backend that was named cannot run here.
        """
        first = self._layers[0].weight
        checks.tensor_of("x", x, checks.FLOAT)
        checks.on_device("x", x, first, "the layers")
        if x.dim() != 4 or x.shape[1] != first.shape[1]:
            raise ArgumentError(f"x: expected shape (N, {first.shape[1]}, H, W), got {tuple(x.shape)}")
        tall, wide = x.shape[2:]
        for layer in self._layers:
            tall, wide = layer.side(tall), layer.side(wide)
            if min(tall, wide) < 1:
                raise ArgumentError(f"x: expected sides that all layers fit into, got shape {tuple(x.shape)}")
        if torch.is_grad_enabled():
            checks.refuse_gradients("ConvPreluNetwork", (), (("x", x),))
        if not native_only.chosen("cpu_conv_prelu", "ConvPreluNetwork", (x,), backend):
            return self._reference(x)
        channels = self._layers[-1].weight.shape[0]
        made = torch.empty((len(x), tall, wide, channels), dtype=torch.float32, device="cpu")
        if made.numel():
            own = x.permute(0, 2, 3, 1).contiguous()
            sizes = (len(x), *x.shape[2:], x.shape[1], self._native)
            _native.module().cpu_conv_prelu(own.data_ptr(), made.data_ptr(), *sizes, *backends.on_cpu())
        return made.permute(0, 3, 1, 2)

    @torch.no_grad()
    def _reference(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            x = F.conv2d(x, layer.weight, layer.bias)
            if layer.slopes is not None:
                x = F.prelu(x, layer.slopes)
            if layer.pool is not None:
                x = F.max_pool2d(x, layer.pool, 2, ceil_mode=True)
        return x


def _packed(layer: ConvPrelu) -> Tensor:
    """Bias, slopes and weights, (2 + S S C, K), K filled up."""
    channels = len(layer.bias)
    shape = 2 + layer.weight[0].numel(), -(-channels // _LANES) * _LANES
    made = torch.zeros(shape, dtype=torch.float32, device="cpu")
    made[0, :channels] = layer.bias.detach()
    made[1, :channels] = 1.0 if layer.slopes is None else layer.slopes.detach()
    made[2:, :channels] = layer.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
    return made
