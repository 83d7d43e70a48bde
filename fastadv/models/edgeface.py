"""EdgeFace XS (George et al. 2024): EdgeNeXt stages, a linear embedding; the published names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DIMS = (32, 64, 100, 192)
_DEPTHS = (3, 3, 9, 3)
_KERNELS = (3, 5, 7, 9)
_SPLITS = (0, 2, 3, 4)  # 0: the stage has no attention block
_HEADS = 4
_EPS = 1e-6

LAYERS = tuple(f"model.stages.{i}.blocks.{j}" for i, n in enumerate(_DEPTHS) for j in range(n))


class _LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `(N, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last layout both permutations are free.
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _MLP(nn.Module):
    """Channels × 4, GELU, and back; on the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _ConvBlock(nn.Module):
    """Depthwise convolution, layer norm, MLP, layer scale, residual (Maaz et al. 2022, figure 2)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = _MLP(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(self.norm(y))
        return x + y.permute(0, 3, 1, 2)


class _CrossCovarianceAttention(nn.Module):
    """Attention between channels: softmax(q̂ k̂ᵀ · temperature) v, with q̂, k̂ of norm 1 over the positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(_HEADS, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, channels = x.shape
        qkv = self.qkv(x).reshape(batch, positions, 3, _HEADS, channels // _HEADS)
        query, key, value = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # each (N, heads, C / heads, positions)
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        mixed = (scores * self.temperature).softmax(dim=-1) @ value
        return self.proj(mixed.permute(0, 3, 1, 2).reshape(batch, positions, channels))


class _FourierPositions(nn.Module):
    """Sines and cosines of the row and column, projected to the channels (Maaz et al. 2022, section 3)."""

    table: Tensor

    def __init__(self, channels: int, grid: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * hidden, channels, 1)
        self.register_buffer("table", _fourier_table(grid, hidden), persistent=False)

    def forward(self) -> Tensor:
        return self.token_projection(self.table)


def _fourier_table(grid: int, hidden: int) -> Tensor:
    """`(1, 2·hidden, grid, grid)`: sine, cosine of 2π·position/grid / 10000^(2⌊k/2⌋/hidden) per axis."""
    position = torch.arange(1, grid + 1, dtype=torch.float64) / (grid + 1e-6) * 2 * math.pi
    index = torch.arange(hidden)
    angle = position[:, None] / 10000.0 ** (2 * (index // 2).double() / hidden)
    wave = torch.where(index % 2 == 0, angle.sin(), angle.cos()).T  # (hidden, grid)
    rows = wave[:, :, None].expand(hidden, grid, grid)
    columns = wave[:, None, :].expand(hidden, grid, grid)
    return torch.cat((rows, columns))[None].float()


class _SplitAttentionBlock(nn.Module):
    """SDTA: cascaded depthwise convolutions over channel splits, then cross-covariance attention and an MLP.

    Source: Maaz et al. 2022, "EdgeNeXt", figure 2 and equation 2.
    """

    def __init__(self, channels: int, splits: int, grid: int | None) -> None:
        super().__init__()
        width = math.ceil(channels / splits)
        self.splits = splits
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(splits - 1))
        self.pos_embd = None if grid is None else _FourierPositions(channels, grid)
        self.norm_xca = nn.LayerNorm(channels, eps=_EPS)
        self.gamma_xca = nn.Parameter(torch.full((channels,), 1e-6))
        self.xca = _CrossCovarianceAttention(channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = _MLP(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(self.splits, dim=1)
        outputs = [self.convs[0](parts[0])]
        for conv, part in zip(list(self.convs)[1:], parts[1:], strict=False):
            outputs.append(conv(outputs[-1] + part))
        y = torch.cat((*outputs, parts[-1]), dim=1)
        if self.pos_embd is not None:
            y = y + self.pos_embd()
        batch, channels, height, width = y.shape
        tokens = y.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        tokens = self.gamma * self.mlp(self.norm(tokens))
        return x + tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    def __init__(self, index: int, grid: int) -> None:
        super().__init__()
        channels = _DIMS[index]
        self.downsample: nn.Module = nn.Identity()
        if index > 0:
            before = _DIMS[index - 1]
            self.downsample = nn.Sequential(_LayerNorm2d(before), nn.Conv2d(before, channels, 2, 2))
        blocks: list[nn.Module] = [_ConvBlock(channels, _KERNELS[index]) for _ in range(_DEPTHS[index])]
        if _SPLITS[index]:
            blocks[-1] = _SplitAttentionBlock(channels, _SPLITS[index], grid if index == 1 else None)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _Head(nn.Module):
    """Mean over the positions, layer norm, linear."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.fc = nn.Linear(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


class _EdgeNeXt(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, _DIMS[0], 4, 4), _LayerNorm2d(_DIMS[0]))
        self.stages = nn.Sequential(*(_Stage(i, 28 >> i) for i in range(4)))
        self.head = _Head(_DIMS[-1], size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


class EdgeFaceXS(nn.Module):
    """EdgeFace XS: `(N, 3, 112, 112)` normalised images to `(N, 512)` features; 2.24 M parameters.

    Sources: George et al. 2024, "EdgeFace" (the network and its training); Maaz et al. 2022, "EdgeNeXt" (the
        blocks).
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = _EdgeNeXt(512)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
