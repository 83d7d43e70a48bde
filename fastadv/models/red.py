"""RED: very deep convolutional encoder-decoders with symmetric skips, for image denoising."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_int
from fastadv.models.checkpoints import CheckpointError, load_weights, read_state_dict
from fastadv.models.seeded import Seeded
from fastadv.models.shipped import shipped_state
from fastadv.models.state_fit import printed

SHIPPED = "red30"
"""The name of the shipped weights."""

WIDEST, DEEPEST = 512, 100


class REDNet(nn.Module):
    r"""``n`` convolutions and ``n`` deconvolutions of 3×3 with symmetric skips; RED30 has 15 of each.

    With :math:`e_0 = x` the image and :math:`\sigma` the ReLU,

    .. math:: e_k = \sigma(C_k * e_{k-1}), \qquad d_0 = e_n, \qquad
              d_k = \sigma(D_k \star d_{k-1} + [\,n - k \text{ even}\,]\; e_{n-k}), \qquad
              y = x + D_n \star d_{n-1}

    for :math:`0 < k < n`: every second convolution's maps are added to those of the deconvolution that mirrors it, and
    the input to the output, so that the network learns the noise. Nothing is pooled; images of any size keep theirs.

    With ``stride`` 2 the first convolution halves height and width and the last deconvolution doubles them: a quarter
    of the arithmetic, for a little less accuracy.

    Args:
        width: Maps of every inner layer, in [1, 512]; the paper's is 64.
        layers: ``2n``, even, in [4, 100]; the paper's are 10, 20 and 30.
        stride: 1 or 2.

    Raises:
        ValueError: An argument is out of range.

    Source:
        Mao, Shen and Yang 2016, "Image restoration using very deep convolutional encoder-decoder networks with
        symmetric skip connections", section 2 (architecture, skips of step 2); ``stride`` is what the extended version,
        arXiv 1606.08921, proposes for fast testing.
    """

    stride: Tensor

    def __init__(self, *, width: int = 64, layers: int = 30, stride: int = 1) -> None:
        super().__init__()
        check_shape(width=width, layers=layers, stride=stride)
        half = layers // 2
        self.encoder = nn.ModuleList(
            nn.Conv2d(width if k else 3, width, 3, stride=1 if k else stride, padding=1) for k in range(half)
        )
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(
                width, 3 if k == half - 1 else width, 3, stride=stride if k == half - 1 else 1, padding=1
            )
            for k in range(half)
        )
        # in the state, since the shapes of the weights do not tell it
        self.register_buffer("stride", torch.tensor(stride))
        self._shape = width, layers, stride
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 or name == f"decoder.{half - 1}.weight":  # the network begins as the identity
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def layers(self) -> int:
        """Convolutions and deconvolutions."""
        return self._shape[1]

    @property
    def width(self) -> int:
        """Maps of every inner layer."""
        return self._shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """The images without their noise.

        Args:
            images: ``(N, 3, H, W)``, of the weights' type.

        Returns:
            ``(N, 3, H, W)``, not clipped to the pixel range.
        """
        half = len(self.encoder)
        maps, kept = images, []
        for k, convolution in enumerate(self.encoder, 1):
            maps = F.relu(convolution(maps))
            if k % 2 == 0 and k < half:
                kept.append(maps)
        for k, deconvolution in enumerate(self.decoder[:-1], 1):
            maps = deconvolution(maps)
            maps = F.relu(maps + kept.pop() if (half - k) % 2 == 0 else maps)
        return images + self.decoder[-1](maps, output_size=images.shape[2:])

    def extra_repr(self) -> str:
        """What ``repr`` shows besides the modules."""
        return f"layers={self.layers}, width={self.width}, stride={self._shape[2]}"


def load_denoiser(weights: str | os.PathLike[str] | None = None) -> REDNet:
    """A trained network, frozen and in evaluation mode, on the CPU.

    Width, layers and stride are those of the file.

    Args:
        weights: A file that ``fastadv train denoiser`` wrote, or a torch checkpoint of such a network; None for the
            shipped weights, of 30 layers, trained on synthetic faces.

    Raises:
        CheckpointError: The file is missing, damaged, of another format, or not of such a network.
    """
    if weights is None:
        return network_of(shipped_state(SHIPPED), source=f"the shipped {SHIPPED}")
    file = Path(weights)
    return network_of(read_state_dict(file), source=str(file))


def network_of(state: Mapping[str, Tensor], *, source: str) -> REDNet:
    """The network that a state is of, with it, frozen.

    Args:
        state: Tensors by name, all of them, no others.
        source: Where they come from, for the error.

    Raises:
        CheckpointError: The state is not of such a network.
    """
    first, stride = state.get("encoder.0.weight"), state.get("stride")
    if (
        first is None
        or first.dim() != 4
        or 0 in first.shape
        or stride is None
        or stride.numel() != 1
        or stride.is_floating_point()
    ):
        raise CheckpointError(
            "weights: expected a denoiser with the tensors encoder.0.weight and stride, got "
            f"{', '.join(map(printed, sorted(state)[:3]))}{', ...' if len(state) > 3 else ''} in {source}"
        )
    layers = 2 * sum(name.startswith("encoder.") and name.endswith(".weight") for name in state)
    try:
        with Seeded(0):  # the first weights are drawn, and then replaced
            network = REDNet(width=first.shape[0], layers=layers, stride=int(stride))
    except (RuntimeError, ValueError) as error:  # RuntimeError: a size that no memory can hold
        raise CheckpointError(f"weights: expected a denoiser, got other tensors in {source}: {error}") from error
    load_weights(network, state, source=source)
    return network.eval().requires_grad_(False)


def check_shape(*, width: int, layers: int, stride: int) -> None:
    """Raise ValueError unless a network can be of this shape."""
    check_int("width", width, 1, WIDEST)
    check_int("layers", layers, 4, DEEPEST)
    check_int("stride", stride, 1, 2)
    if layers % 2:
        raise ArgumentError(f"layers: expected an even number, half of them convolutions, got {layers}")
