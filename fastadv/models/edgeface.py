"""EdgeFace (George et al. 2024): EdgeNeXt stages, a linear embedding; the published names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KERNELS = (3, 5, 7, 9)
_SPLITS = (0, 2, 3, 4)  # 0: the stage has no attention block
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the published networks.

    Attributes:
        dims: channels of the four stages.
        depths: their blocks.
        heads: of the attention.
        rank: gamma, the rank of each linear layer as a share of its smaller side; None for whole ones.
    """

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    heads: int = 8
    rank: float | None = None

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A linear layer, of low rank where the network's are."""
        if self.rank is None:
            return nn.Linear(inputs, outputs)
        return _LowRank(inputs, outputs, max(2, int(min(inputs, outputs) * self.rank)))


BASE = Variant(dims=(80, 160, 288, 584))
S_GAMMA_05 = Variant(dims=(48, 96, 160, 304), rank=0.5)
XS = Variant(dims=(32, 64, 100, 192), heads=4)
XS_GAMMA_06 = Variant(dims=(32, 64, 100, 192), heads=4, rank=0.6)
XXS = Variant(dims=(24, 48, 88, 168), depths=(2, 2, 6, 2), heads=4)


def layers(variant: Variant) -> tuple[str, ...]:
    """The names of the blocks, shallow to deep."""
    return tuple(f"model.stages.{i}.blocks.{j}" for i, n in enumerate(variant.depths) for j in range(n))


class _LowRank(nn.Module):
    """`W₂ W₁ x + b` with W₁ of `rank` rows: the LoRaLin of George et al. 2024, section III-B."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))


class _LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `(N, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last layout both permutations are free.
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _MLP(nn.Module):
    """Channels × 4, GELU, and back; on the last axis."""

    def __init__(self, channels: int, variant: Variant) -> None:
        super().__init__()
        self.fc1 = variant.linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = variant.linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _ConvBlock(nn.Module):
    """Depthwise convolution, layer norm, MLP, layer scale, residual (Maaz et al. 2022, figure 2)."""

    def __init__(self, channels: int, kernel: int, variant: Variant) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = _MLP(channels, variant)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(self.norm(y))
        return x + y.permute(0, 3, 1, 2)


class _CrossCovarianceAttention(nn.Module):
    """Attention between channels: softmax(q̂ k̂ᵀ · temperature) v, with q̂, k̂ of norm 1 over the positions."""

    def __init__(self, channels: int, variant: Variant) -> None:
        super().__init__()
        self.heads = variant.heads
        self.temperature = nn.Parameter(torch.ones(variant.heads, 1, 1))
        self.qkv = variant.linear(channels, 3 * channels)
        self.proj = variant.linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, channels = x.shape
        qkv = self.qkv(x).reshape(batch, positions, 3, self.heads, channels // self.heads)
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

    def __init__(self, channels: int, splits: int, grid: int | None, variant: Variant) -> None:
        super().__init__()
        width = math.ceil(channels / splits)
        self.splits = splits
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(splits - 1))
        self.pos_embd = None if grid is None else _FourierPositions(channels, grid)
        self.norm_xca = nn.LayerNorm(channels, eps=_EPS)
        self.gamma_xca = nn.Parameter(torch.full((channels,), 1e-6))
        self.xca = _CrossCovarianceAttention(channels, variant)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = _MLP(channels, variant)
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
    def __init__(self, index: int, grid: int, variant: Variant) -> None:
        super().__init__()
        channels = variant.dims[index]
        self.downsample: nn.Module = nn.Identity()
        if index > 0:
            before = variant.dims[index - 1]
            self.downsample = nn.Sequential(_LayerNorm2d(before), nn.Conv2d(before, channels, 2, 2))
        blocks: list[nn.Module] = [_ConvBlock(channels, _KERNELS[index], variant) for _ in range(variant.depths[index])]
        if _SPLITS[index]:
            blocks[-1] = _SplitAttentionBlock(channels, _SPLITS[index], grid if index == 1 else None, variant)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _Head(nn.Module):
    """Mean over the positions, layer norm, linear."""

    def __init__(self, channels: int, size: int, variant: Variant) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.fc = variant.linear(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


class _EdgeNeXt(nn.Module):
    def __init__(self, size: int, variant: Variant) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, variant.dims[0], 4, 4), _LayerNorm2d(variant.dims[0]))
        self.stages = nn.Sequential(*(_Stage(i, 28 >> i, variant) for i in range(4)))
        self.head = _Head(variant.dims[-1], size, variant)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


class EdgeFace(nn.Module):
    """EdgeFace: `(N, 3, 112, 112)` normalised images to `(N, 512)` features.

    Parameters: 18.23 M (base), 3.65 M (S, gamma 0.5), 2.24 M (XS), 1.77 M (XS, gamma 0.6), 1.24 M (XXS). Parameter
    names of the checkpoints of otroshi/edgeface; those whose names end in `_q` are quantised and are not read.

    Sources: George et al. 2024, "EdgeFace" (the network and its training); Maaz et al. 2022, "EdgeNeXt" (the
        blocks).

    Args:
        variant: which of them.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.model = _EdgeNeXt(512, variant)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class EdgeFaceXS(EdgeFace):
    """EdgeFace XS with whole linear layers; the name is a part of a saved network's identity."""

    def __init__(self) -> None:
        super().__init__(XS)
