"""`FaceModel`: any backbone that turns aligned faces into embeddings, with its preprocessing inside."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError, Error
from fastadv.core.fields import check_one_of, check_type
from fastadv.models.memory import is_out_of_memory

_CHANNELS = 4
PRECISIONS = ("fp32", "tf32", "bf16")
ORDERS = ("rgb", "bgr")
Template = tuple[tuple[float, float], ...]
_SAME: Any = object()


class FaceModel(nn.Module):
    """Images in [0, 1] to L2-normalised embeddings.

    With `f` the backbone, `F(x) = f(x̂) / ||f(x̂)||₂` where `x̂ = (x - mean) / std` per colour channel, in the order of
    the colours that the backbone was trained on. The normalisation is part of the model, so that an attack sees pixels
    only, and a budget has the pixels' unit.

    Any module that maps `(N, C, H, W)` to `(N, D)` can be wrapped (see `wrap`, which also makes classifiers)::

        model = FaceModel(my_network, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name="mine").eval()

    Nothing in the forward pass synchronises with the host, and the memory layout of the images (contiguous or
    channels-last) is kept.

    Args:
        backbone: module from `(N, C, H, W)` to `(N, D)`.
        input_size: height and width in pixels.
        mean: one number a channel (one to four), subtracted; unit: the pixel range [0, 1]. Of three, the first is
            red's, whatever the order of the colours.
        std: as many positive numbers, the divisors; same unit and order.
        name: what reports call the model.
        layers: names of submodules of `backbone` that are offered as taps (feature layers), shallow to deep.
        head: optional module from `(N, D)` features to `(N, K)` logits.
        channels: the order of the colours that the backbone takes: "rgb", or "bgr" of three channels. Images are RGB.
        template: where the five landmarks of an aligned face lie in its images, five (x, y) in pixels: left eye, right
            eye, nose, left and right mouth corner, the viewer's left first; None for ArcFace's (Deng et al. 2019).

    Raises:
        TypeError: if `backbone` or `head` is no module, or `name` no text.
        ValueError: if a number is out of range or a layer is no submodule of the backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        input_size: tuple[int, int] = (112, 112),
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        name: str,
        layers: Sequence[str] = (),
        head: nn.Module | None = None,
        channels: str = "rgb",
        template: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ArgumentTypeError(
                f"backbone: expected a torch.nn.Module, got {type(backbone).__name__}"
                + ("; wrap the network that was exported" if type(backbone).__name__ == "ExportedProgram" else "")
            )
        if head is not None and not isinstance(head, nn.Module):
            raise ArgumentTypeError(f"head: expected a torch.nn.Module or None, got {type(head).__name__}")
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(f"name: expected a non-empty str, got {name!r}")
        self.backbone = backbone
        self.head = head
        self.name = name
        self.input_size = _checked_size(input_size)
        self.layers = _checked_layers(backbone, layers)
        #: How the model is meant to be run: set by `prepare`, read by the engine ("tf32" is a CUDA mode).
        self.precision = "fp32"
        self._embedding_size: int | None = None
        #: Whether `prepare` has seen that an image's output depends on that image alone.
        self._independent = False
        #: The activations that `prepare` has made parts of convolutions.
        self._fused: tuple[Any, ...] = ()
        self.template = None if template is None else _checked_template(template)
        mean_values, std_values = _per_channel("mean", mean), _per_channel("std", std)
        count = len(mean_values)
        if len(std_values) != count:
            raise ArgumentError(f"std: expected {count} numbers, as many as mean has, got {len(std_values)}")
        check_one_of("channels", channels, ORDERS)
        if channels != "rgb" and count != 3:
            raise ArgumentError(f"channels: expected 'rgb' for images of {count} channels, got {channels!r}")
        self.channels = channels
        for argument, largest, most in (("mean", max(map(abs, mean_values)), 2), ("std", max(std_values), 16)):
            if largest > most:  # 127.5 and 128 are habits of networks that take pixels from 0 to 255
                raise ArgumentError(
                    f"{argument}: expected values in the unit of pixels in [0, 1], got {largest:g}; divide by 255"
                )
        if min(std_values) <= 0:
            raise ArgumentError(f"std: expected numbers > 0, got {std_values}")
        # Not persistent: constants of the model, no part of a checkpoint.
        for argument, values in (("mean", mean_values), ("std", std_values)):
            buffer = torch.tensor(values, dtype=torch.float32).view(1, count, 1, 1)
            self.register_buffer(argument, buffer, persistent=False)

    def replace(
        self,
        *,
        name: str | None = None,
        layers: Sequence[str] | None = None,
        head: nn.Module | None = _SAME,
        **other: Any,
    ) -> FaceModel:
        """A plain model of the same parts, which are shared, but for those that are given.

        What is not given is to the bit this model's, and so are its device, mode and precision.

        Args:
            name: what reports call it; None as this one.
            layers: its taps; None those of this one.
            head: its class head, or None for none; this one's where nothing is given.
            other: ``input_size``, ``mean``, ``std``, ``channels`` and ``template``, as of the class.

        Raises:
            ValueError: as the class.
        """
        made = FaceModel.__new__(FaceModel)
        made._share(self, name=name, layers=layers, head=head, **other)
        return made

    def _share(
        self,
        model: FaceModel,
        *,
        name: str | None = None,
        layers: Sequence[str] | None = None,
        head: nn.Module | None = _SAME,
        **other: Any,
    ) -> None:
        """Begin as a model with another one's parts; in place of ``__init__``."""
        parts = {part: getattr(model, part) for part in ("input_size", "mean", "std", "channels", "template")}
        FaceModel.__init__(
            self,
            model.backbone,
            name=name or model.name,
            layers=model.layers if layers is None else layers,
            head=model.head if head is _SAME else head,
            **{**parts, **other},
        )
        for part in ("mean", "std"):  # exactly those of the model, on its device
            setattr(self, part, getattr(self, part).to(model.device) if part in other else getattr(model, part))
        self.precision, self.training = model.precision, model.training

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image that the model takes."""
        return (self.mean.shape[1], *self.input_size)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type the backbone computes in: that of its first weight with two or more axes.

        The images are cast to it after the normalisation. A prepared bfloat16 model keeps its batch norms in
        float32, which is why the first parameter alone would not tell.
        """
        found: torch.dtype | None = None
        for parameter in self.backbone.parameters():
            if parameter.is_floating_point():
                if parameter.dim() > 1:
                    return parameter.dtype
                found = found or parameter.dtype
        return found or torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.mean.device

    @property
    def embedding_size(self) -> int:
        """D, the number of features; found once, by running one grey image through the backbone.

        Raises:
            ValueError: if the backbone cannot take one image of `input_size`, or gives no `(N, D)` tensor.
        """
        if self._embedding_size is None:
            probe = torch.full((1, *self.image_shape), 0.5, device=self.device)
            try:
                # batch norm in training mode refuses one image, and would learn from it
                with evaluating(self), torch.no_grad():
                    self._embedding_size = int(self.features(probe).shape[1])
            except Error:
                raise
            except (RuntimeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                raise ArgumentError(
                    f"backbone: expected a network that takes one image of input_size={self.input_size}, got one "
                    f"that fails ({error})"
                ) from error
        return self._embedding_size

    def features(self, images: Tensor) -> Tensor:
        """The backbone's raw output, before the L2 normalisation.

        Args:
            images: `(N, C, H, W)`, floating point, in [0, 1], with `(C, H, W) = image_shape`.

        Returns:
            `(N, D)` float32 (float64 from a float64 backbone).

        Raises:
            TypeError: if `images` is no floating-point tensor.
            ValueError: if its shape does not fit, or the backbone's output is not `(N, D)`.
        """
        self._check(images)
        output = self.backbone(self.normalised(images))
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != images.shape[0]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ArgumentError(f"backbone: expected an output of shape (N, D) with N={images.shape[0]}, got {got}")
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def normalised(self, images: Tensor) -> Tensor:
        """What the backbone reads of images: less the mean, over the standard deviation, in its order and type."""
        # Two operations, one rounding each: the same bits whatever vector width handles an element.
        values = (images - self.mean).div_(self.std).to(self.dtype)
        return values if self.channels == "rgb" else values.flip(1)

    def forward(self, images: Tensor) -> Tensor:
        """The embedding `F(x) = features / ||features||₂`.

        Args:
            images: as in `features`.

        Returns:
            `(N, D)` float32, every row of norm 1 (a row of zeros stays zero).
        """
        return F.normalize(self.features(images), dim=1)

    def logits(self, images: Tensor) -> Tensor:
        """The class head applied to the raw features.

        Args:
            images: as in `features`.

        Returns:
            `(N, K)` logits.

        Raises:
            ValueError: if the model has no head.
        """
        if self.head is None:
            raise ArgumentError(
                f"head: expected a class head for logits, got {self.name!r} without one; build the FaceModel "
                "with head=, or use an embedding goal"
            )
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> FaceModel:
        """Set the mode of the model and of all its submodules.

        Raises:
            ValueError: if a submodule has no other mode, as what `torch.export` makes.
        """
        try:
            return super().train(mode)
        except NotImplementedError as error:
            raise ArgumentError(
                f"model: expected a network that can be put into evaluation mode, got {self.name!r}, which cannot "
                f"({str(error).rstrip('.')}); of torch.export's modules, wrap the network that was exported"
            ) from error

    def extra_repr(self) -> str:
        """What `repr` shows besides the modules."""
        return f"name={self.name!r}, input_size={self.input_size}, precision={self.precision!r}"

    def _check(self, images: Tensor) -> None:
        check_type("images", images, Tensor, "a torch.Tensor")
        if not images.is_floating_point():
            raise ArgumentTypeError(f"images: expected a floating-point tensor in [0, 1], got {images.dtype}")
        expected = self.image_shape
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ArgumentError(
                f"images: expected shape (N, {str(expected)[1:]} for {self.name!r}, got {tuple(images.shape)}"
            )
        if self.mean.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(
                f"model: expected a normalisation in float32 or float64, got {self.mean.dtype}, since the "
                "model was cast as a whole; use prepare(model, precision='bf16')"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts every module evaluates; afterwards each is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_face_model(model: Any, *, evaluating: bool = False) -> None:
    """Refuse what is no model, or one of which a part is in training mode where it must not be.

    Raises:
        ArgumentTypeError: it is no ``FaceModel``.
        ArgumentError: it is in training mode.
    """
    check_type("model", model, FaceModel)
    if evaluating and any(module.training for module in model.modules()):
        raise ArgumentError(
            f"model: expected one in evaluation mode, got {model.name!r} in training mode; call .eval()"
        )


def copy_of(model: FaceModel) -> FaceModel:
    """A deep copy of a model, of any device and mode.

    Raises:
        ArgumentError: Its network cannot be copied.
    """
    try:
        with torch.no_grad():  # or the parameters of a scripted network would come out as computed values
            return copy.deepcopy(model)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ArgumentError(
            f"model: expected a network that copy.deepcopy can copy, got {model.name!r}, which cannot be copied "
            f"({str(error).split('.')[0]}); use torch.nn.utils.parametrizations in place of the older weight_norm and "
            "spectral_norm, and detach the tensors that it keeps"
        ) from error


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    values = tuple(size) if isinstance(size, Sequence) else ()
    if len(values) != 2 or not all(isinstance(v, int) and v > 0 for v in values):
        raise ArgumentError(f"input_size: expected two positive ints (height, width), got {brief(size)}")
    return (values[0], values[1])


def _checked_template(points: Sequence[Sequence[float]]) -> Template:
    try:
        pairs = tuple((float(x), float(y)) for x, y in points)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != 5 or not all(math.isfinite(value) for pair in pairs for value in pair):
        raise ArgumentError(f"template: expected five points (x, y) in pixels of the input, got {brief(points)}")
    return pairs


def _per_channel(argument: str, values: Sequence[float] | Tensor) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in (values.flatten().tolist() if isinstance(values, Tensor) else values))
    except (TypeError, ValueError):
        numbers = ()
    if not 1 <= len(numbers) <= _CHANNELS or not all(math.isfinite(v) for v in numbers):
        raise ArgumentError(
            f"{argument}: expected one finite number for each of one to {_CHANNELS} channels, got {brief(values)}"
        )
    return numbers


def _checked_layers(backbone: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(layers, str):
        raise ArgumentError(f"layers: expected a sequence of names, got the single str {layers!r}")
    known = {name for name, _ in backbone.named_modules() if name}
    for layer in layers:
        if layer not in known:
            raise ArgumentError(
                "layers: expected submodules of the backbone "
                f"({', '.join(sorted(known)[:8]) or 'it has none'}{', ...' if len(known) > 8 else ''}), got "
                f"{layer!r}"
            )
    if len(set(layers)) != len(layers):
        raise ArgumentError(f"layers: expected distinct names, got {tuple(layers)}")
    return tuple(layers)
