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
        weights: Where they come from.
        input: Height of the images, in pixels.
        width: Their width.
        shipped: Whether fastadv brings them.
    """

    parameters: int
    weights: str
    input: int = 112
    width: int = 112
    shipped: bool = False


def _shipped(parameters: int) -> Network:
    return Network(parameters=parameters, weights=_SHIPPED, shipped=True)


def _of(parameters: int, weights: str, height: int = 112, width: int | None = None) -> Network:
    return Network(parameters=parameters, weights=f"--weights: {weights}", input=height, width=width or height)


_ARCFACE = "ArcFace (Deng et al. 2019), ElasticFace"
_ADAFACE = "AdaFace (Kim et al. 2022)"
_MAGFACE = "MagFace (Meng et al. 2021)"
_EDGEFACE = "EdgeFace (George et al. 2024)"
_COSFACE = "MuggleWang/CosFace_pytorch"

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "mobilefacenet": _of(999_936, "ArcFace checkpoint of foamliu"),
        "mobilefacenet_linear": _of(1_200_512, "model_mobilefacenet.pth of TreB1eN"),
        "mobileface_v2": _of(882_208, "MobileFace of becauseofAI"),
        "edgeface_base": _of(18_225_812, _EDGEFACE),
        "edgeface_s_gamma_05": _of(3_652_520, _EDGEFACE),
        "edgeface_xs": _of(2_242_620, _EDGEFACE),
        "edgeface_xs_gamma_06": _of(1_770_492, _EDGEFACE),
        "edgeface_xxs": _of(1_244_744, _EDGEFACE),
        "iresnet18": _of(24_025_600, _ARCFACE),
        "iresnet34": _of(34_139_328, _ARCFACE),
        "iresnet50": _of(43_590_848, _ARCFACE),
        "iresnet100": _of(65_156_160, _ARCFACE),
        "ir50": _of(43_574_976, "IR_50 of face.evoLVe"),
        "ir100": _of(65_129_792, "IR_101 of face.evoLVe"),
        "adaface_ir18": _of(24_020_352, _ADAFACE),
        "adaface_ir50": _of(43_585_600, _ADAFACE),
        "adaface_ir101": _of(65_150_912, _ADAFACE),
        "magface_iresnet18": _of(24_025_600, _MAGFACE),
        "magface_iresnet50": _of(43_590_848, _MAGFACE),
        "magface_iresnet100": _of(65_156_160, _MAGFACE),
        "se_iresnet50": _of(43_808_320, "AdaFace's IR_SE_50 (Kim et al. 2022)"),
        "ir_se50": _of(43_797_696, "model_ir_se50.pth of TreB1eN"),
        "se_resnet50": _of(26_039_024, "senet50 of cydonia999/VGGFace2-pytorch", 224),
        "inception_resnet_v1": _of(23_482_624, "timesler/facenet-pytorch", 160),
        "sphereface20": _of(22_670_656, "sphere20a of clcarwin/sphereface_pytorch"),
        "cosface_sphere20": _of(22_666_944, _COSFACE, 112, 96),
        "cosface_sphere64": _of(47_891_648, _COSFACE, 112, 96),
        "mobilenet_v1": _of(16_580_416, "bubbliiiing/arcface-pytorch"),
        "synth-mobile": _shipped(135_680),
        "synth-resnet": _shipped(576_992),
        "synth-vgg": _shipped(193_136),
        "synth-shuffle": _shipped(123_968),
    }
)
"""By the names of ``--model``."""
