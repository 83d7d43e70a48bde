"""The networks as ``fastadv models`` lists them, without PyTorch; a test compares them with the library's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_SHIPPED = "shipped: trained on synthetic faces"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the command line.

    Attributes:
        parameters: Their number, without a class head.
        input: Side of the square images, in pixels.
        weights: Where they come from.
        shipped: Whether fastadv brings them.
    """

    parameters: int
    weights: str
    input: int = 112
    shipped: bool = False


def _shipped(parameters: int) -> Network:
    return Network(parameters=parameters, weights=_SHIPPED, shipped=True)


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "mobilefacenet": Network(parameters=999_936, weights="--weights: ArcFace checkpoint of foamliu"),
        "mobileface_v2": Network(parameters=882_208, weights="--weights: MobileFace of becauseofAI"),
        "edgeface_xs": Network(parameters=2_242_620, weights="--weights: EdgeFace (George et al. 2024)"),
        "iresnet18": Network(parameters=24_025_600, weights="--weights: ArcFace (Deng et al. 2019)"),
        "iresnet34": Network(parameters=34_139_328, weights="--weights: ArcFace (Deng et al. 2019)"),
        "iresnet50": Network(parameters=43_590_848, weights="--weights: ArcFace (Deng et al. 2019)"),
        "iresnet100": Network(parameters=65_156_160, weights="--weights: ArcFace (Deng et al. 2019)"),
        "se_iresnet50": Network(parameters=43_808_320, weights="--weights: AdaFace's IR_SE_50 (Kim et al. 2022)"),
        "ir_se50": Network(parameters=43_797_696, weights="--weights: model_ir_se50.pth of TreB1eN"),
        "se_resnet50": Network(
            parameters=26_039_024, input=224, weights="--weights: senet50 of cydonia999/VGGFace2-pytorch"
        ),
        "inception_resnet_v1": Network(parameters=23_482_624, input=160, weights="--weights: timesler/facenet-pytorch"),
        "sphereface20": Network(parameters=22_670_656, weights="--weights: sphere20a of clcarwin/sphereface_pytorch"),
        "mobilenet_v1": Network(parameters=16_580_416, weights="--weights: bubbliiiing/arcface-pytorch"),
        "synth-mobile": _shipped(135_680),
        "synth-resnet": _shipped(576_992),
        "synth-vgg": _shipped(193_136),
        "synth-shuffle": _shipped(123_968),
    }
)
"""By the names of ``--model``."""
