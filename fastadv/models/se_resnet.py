"""SE-ResNet-50 of VGGFace2 (Cao et al. 2018), in the layout of its published PyTorch port."""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels, bottlenecks
_EXPANSION = 4
_REDUCTION = 16

# Red, green, blue, in units of [0, 1]: the published means are 91.4953, 103.8827, 131.0912 of 255 for blue, green, red.
MEAN = (131.0912 / 255, 103.8827 / 255, 91.4953 / 255)
STD = (1 / 255, 1 / 255, 1 / 255)

LAYERS = tuple(f"layer{i}.{j}" for i, (_, repeats) in enumerate(_STAGES, start=1) for j in range(repeats))


class _Bottleneck(nn.Module):
    """1×1 (with the stride, as in Caffe), 3×3, 1×1, squeeze-and-excitation by conv4 and conv5; added, then ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.conv4 = nn.Conv2d(outputs, outputs // _REDUCTION, 1)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(outputs // _REDUCTION, outputs, 1)
        self.sigmoid = nn.Sigmoid()
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        scale = self.conv5(self.relu4(self.conv4(y.mean((2, 3), keepdim=True))))
        y = y * self.sigmoid(scale)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class SEResNet50(nn.Module):
    """SE-ResNet-50: `(N, 3, 224, 224)` BGR images less `MEAN`, divided by `STD`, to `(N, 2048)` features.

    The features are the pooled activations before the classifier; 26.04 M parameters. Parameter names of the published
    `senet50_ft` and `senet50_scratch` (cydonia999/VGGFace2-pytorch, converted from Caffe), whose `fc` of 8,631
    identities becomes the class head. They were trained on BGR images. Their faces are loose crops (the face box
    extended by 0.3, its shorter side resized to 256, the central 224×224).

    Sources: Cao et al. 2018, "VGGFace2", section V; Hu et al. 2018, "Squeeze-and-excitation networks", table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        inputs = 64
        stages = []
        for width, repeats in _STAGES:
            blocks = []
            for i in range(repeats):
                blocks.append(_Bottleneck(inputs, width, 1 if i or width == 64 else 2))
                inputs = width * _EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))
