"""Any network as a model that can be attacked, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_type
from fastadv.models.face_model import FaceModel

OUTPUTS = ("logits", "embedding")


def wrap(
    network: nn.Module,
    *,
    input_size: int | tuple[int, int],
    mean: float | Sequence[float] | Tensor = 0.0,
    std: float | Sequence[float] | Tensor = 1.0,
    channels: int | str = 3,
    output: str = "logits",
    head: nn.Module | None = None,
    layers: Sequence[str] = (),
    name: str | None = None,
    template: Sequence[Sequence[float]] | None = None,
) -> FaceModel:
    r"""Make a classifier, an embedding network, or both, of any network.

    The network is given :math:`(x - \mu) / \sigma` for pixels x in [0, 1], channel by channel. It is put into
    evaluation mode, is not copied, and its weights are never changed. ::

        model = fa.wrap(resnet, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), input_size=224)
        model = fa.wrap(face_network, mean=0.5, std=0.5, input_size=112, output="embedding")

    Args:
        network: A module from images ``(N, C, H, W)`` to logits ``(N, K)`` or embeddings ``(N, D)``.
        input_size: Height and width in pixels; one number for a square.
        mean: mu, in the unit of pixels in [0, 1]: a number for each channel, or one for all. 0 for a network that
            normalises its input itself.
        std: sigma, likewise. 1 for a network that normalises its input itself.
        channels: C, 1 to 4, where neither ``mean`` nor ``std`` says so; or the order of three colours that the network
            takes, ``"rgb"`` or ``"bgr"``. ``mean`` and ``std`` begin with red in either case.
        output: What the network gives: ``"logits"`` or ``"embedding"``.
        head: Of an embedding network: from embeddings to logits, where it has classes too.
        layers: Names of submodules that detectors and feature goals may read, shallow to deep.
        name: What reports call it; the class of the network where None.
        template: Where the five landmarks of an aligned face lie, (x, y) in pixels of the input; None for ArcFace's.

    Raises:
        TypeError: ``network`` or ``head`` is no module.
        ValueError: A number is out of range, ``mean`` and ``std`` have different numbers of channels, or ``head`` is
            given to a network of logits.
    """
    check_type("network", network, nn.Module, "a torch.nn.Module")
    if output not in OUTPUTS:
        raise ArgumentError(f"output: expected 'logits' or 'embedding', got {brief(output)}")
    if output == "logits" and head is not None:
        raise ArgumentError(
            f"head: expected none with output='logits', which the network gives itself, got {type(head).__name__}"
        )
    counts = {_channels(value) for value in (mean, std)} - {None}
    order, given = (channels, 3) if isinstance(channels, str) else ("rgb", channels)
    count = next(iter(counts), given) or given
    model = FaceModel(
        network,
        input_size=(input_size, input_size) if isinstance(input_size, int) else input_size,
        mean=_for_each(mean, count),
        std=_for_each(std, count),
        name=name or type(network).__name__,
        layers=layers,
        head=nn.Identity() if output == "logits" else head,
        channels=order,
        template=template,
    )
    return model.eval()


def _channels(value: float | Sequence[float] | Tensor) -> int | None:
    """For how many channels a value stands; None for any number."""
    if isinstance(value, Tensor):
        return value.numel() if value.dim() else None
    return len(value) if isinstance(value, Sequence) else None


def _for_each(value: float | Sequence[float] | Tensor, channels: int) -> Sequence[float] | Tensor:
    if isinstance(value, Tensor):
        return value if value.dim() else [float(value)] * channels
    return value if isinstance(value, Sequence) else [value] * channels
