"""IR-ResNet in the layout `input_layer`, `body`, `output_layer`, with and without squeeze-and-excitation."""

from __future__ import annotations

from torch import Tensor, nn

_CHANNELS = (64, 128, 256, 512)
_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
_REDUCTION = 16


def layers(depth: int) -> tuple[str, ...]:
    """The names of the residual blocks, shallow to deep.

    Args:
        depth: 18, 50 or 100.
    """
    return tuple(f"body.{i}" for i in range(sum(_BLOCKS[depth])))


class _SqueezeExcitation(nn.Module):
    """`x · σ(W₂ relu(W₁ z))` with `z` the mean of each channel (Hu et al. 2018, equations 2 to 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * self.sigmoid(scale)


class _Block(nn.Module):
    """BN-Conv-(BN)-PReLU-Conv-BN-(SE) beside the shortcut; the stride lies in the second convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, middle_norm: bool, excite: bool) -> None:
        super().__init__()
        middle = (nn.BatchNorm2d(outputs),) if middle_norm else ()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            *middle,
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if excite:
            self.res_layer.add_module("se_block" if middle_norm else "5", _SqueezeExcitation(outputs))
        self.shortcut_layer: nn.Module | None = None
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        elif stride != 1:
            # Every second pixel: the published 1×1 max pooling, without the indices it keeps for the backward pass.
            self.shortcut_layer = nn.AvgPool2d(1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + (x if self.shortcut_layer is None else self.shortcut_layer(x))


class IRBody(nn.Module):
    """IR-ResNet: `(N, 3, 112, 112)` normalised images to `(N, 512)` features.

    With `middle_norm` it has the blocks BN-Conv-BN-PReLU-Conv-BN and the names of AdaFace's `IR_18`, `IR_50` and
    `IR_101` (Kim et al. 2022; 24.02, 43.59 and 65.15 M parameters), whose last batch norm has no weights. Without,
    the blocks lack the batch norm after the first convolution, as in the `IR_50` and `IR_101` of face.evoLVe and the
    `Backbone(50)` and `Backbone(100)` of TreB1eN/InsightFace_Pytorch (43.57 and 65.13 M).

    Sources: Deng et al. 2019, "ArcFace", section 3.1 (the blocks); Hu et al. 2018, "Squeeze-and-excitation networks".

    Args:
        depth: 18, 50 or 100.
        middle_norm: whether there is a batch norm between a block's first convolution and its PReLU.
        excite: whether each block ends in squeeze-and-excitation.
    """

    def __init__(self, depth: int, *, middle_norm: bool, excite: bool = False) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks: list[nn.Module] = []
        inputs = 64
        for outputs, repeats in zip(_CHANNELS, _BLOCKS[depth], strict=True):
            for i in range(repeats):
                blocks.append(_Block(inputs, outputs, 1 if i else 2, middle_norm=middle_norm, excite=excite))
                inputs = outputs
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.0),  # no weights: it keeps the published numbering
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=not middle_norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class SEIResNet50(IRBody):
    """SE-IR-ResNet-50: `(N, 3, 112, 112)` normalised BGR images to `(N, 512)` features.

    With `middle_norm` it is the SENet-50 of Zhong and Deng 2021, "Towards Transferable Adversarial Attack against Deep
    Face Recognition", section IV; 43.81 M parameters, named as in the `IR_SE_50` of AdaFace. Without, it is the
    `IR_SE_50` of the widely used ArcFace checkpoint `model_ir_se50.pth` (TreB1eN/InsightFace_Pytorch, LFW 99.52%);
    43.80 M parameters. Both were trained on BGR images.

    Args:
        middle_norm: as of `IRBody`.
    """

    def __init__(self, *, middle_norm: bool) -> None:
        super().__init__(50, middle_norm=middle_norm, excite=True)
