"""Whether what a network says of an image depends on that image alone: neither on its neighbours, nor on chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.errors import ArgumentError, Error
from fastadv.models.face_model import FaceModel
from fastadv.models.float32_math import float32_math
from fastadv.models.hooks import hooked
from fastadv.models.memory import is_out_of_memory

# Parts of the distance between the outputs of two images, and of an output's own length. A fixed batch shape gives
# equal bits in most networks; what rounding is left in others is far below, and batch statistics are far above.
_TOLERANCE = {"fp32": (1e-4, 1e-5), "tf32": (1e-4, 1e-5), "bf16": (3e-2, 1e-2)}


def check_independent(model: FaceModel) -> None:
    """Refuse a network whose output for an image depends on the other images of the batch, or on chance.

    One image is embedded twice, in another place among other images: two passes of two images. What PyTorch's own
    random numbers were is restored.

    Args:
        model: in evaluation mode.

    Raises:
        ArgumentError: the outputs differ, with the name of the first submodule that makes them differ; or the network
            cannot take a batch of two images.
    """
    device = model.device
    here = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=here), float32_math(device, tf32=False):
        first, second = _companies(model)
        one, other = _outputs(model, first), _outputs(model, second)
        if _same(one[0], other[1], apart=one[1], precision=model.precision):
            return
        again = _outputs(model, first)
        chance = not _same(one[0], again[0], apart=one[1], precision=model.precision)
        # a network of chance is looked at in one company, any other in two
        found = _first_to_differ(model, first, first if chance else second, place=0 if chance else 1)
    where = (
        "" if found is None else f", whose submodule {found[0]!r} ({type(found[1]).__name__}) is the first to differ"
    )
    what = "gives another output each time" if chance else "gives another output in the company of other images"
    raise ArgumentError(
        f"model: expected a network whose output for an image depends on that image alone, got {model.name!r}, "
        f"which {what} in evaluation mode{where}; {_advice(None if found is None else found[1], chance=chance)}"
    )


def _companies(model: FaceModel) -> tuple[Tensor, Tensor]:
    """Two batches of two: one image of little contrast first beside a grey one, and second beside one of full contrast.

    So the batch's means, its variances and its largest values all differ.
    """
    noise = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    image, calm, wild = 0.3 + 0.4 * noise[0], torch.full_like(noise[0], 0.5), (noise[1] < 0.6).float()
    layout = torch.contiguous_format
    for parameter in model.backbone.parameters():
        if parameter.dim() == 4 and not parameter.is_contiguous():
            layout = torch.channels_last
            break
    ready = [torch.stack(pair).to(model.device) for pair in ((image, calm), (wild, image))]
    first, second = (batch.contiguous(memory_format=layout) for batch in ready)
    return first, second


@contextmanager
def _named(text: str) -> Iterator[None]:
    """What a module raises, in one line after the text."""
    try:
        yield
    except Error:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(f"{text} that fails: {lines[0]}") from error


def _outputs(model: FaceModel, images: Tensor) -> Tensor:
    """Features, and what the head makes of them, a row an image."""
    wanted = f"model: expected a network that takes two images of input_size={model.input_size}"
    with _named(f"{wanted}, got {model.name!r}"):
        features = model.features(images)
    if model.head is None:
        return features
    with _named(f"head: expected a module that takes the {features.shape[1]} features of {model.name!r}, got one"):
        logits = model.head(features)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentError(f"head: expected an output of shape (N, K) with N={len(images)}, got {got}")
    return torch.cat([features, logits], 1)


def _same(one: Tensor, other: Tensor, *, apart: Tensor, precision: str) -> bool:
    """Whether two outputs of one image are equal up to rounding; NaN is equal to NaN."""
    one, other, apart = (torch.nan_to_num(row.detach().float()).flatten() for row in (one, other, apart))
    of_distance, of_length = _TOLERANCE[precision]
    allowed = of_distance * torch.linalg.vector_norm(one - apart) + of_length * torch.linalg.vector_norm(one)
    return bool(torch.equal(one, other) or torch.linalg.vector_norm(one - other) <= allowed)


Seen = list[tuple[str, nn.Module, list[Tensor], Tensor]]


def _first_to_differ(model: FaceModel, first: Tensor, second: Tensor, *, place: int) -> tuple[str, nn.Module] | None:
    """The first submodule whose output differs although its input does not; or the one that computes between two."""
    one, other = _seen(model, first, 0), _seen(model, second, place)
    modules = dict(model.named_modules())
    for (name, module, inputs, output), (again, _, other_inputs, other_output) in zip(one, other, strict=False):
        if name != again:
            return None
        if output.shape == other_output.shape and _equal(output, other_output, model.precision):
            continue
        alike = len(inputs) == len(other_inputs)
        if alike and all(_equal(a, b, model.precision) for a, b in zip(inputs, other_inputs, strict=True)):
            return name, module
        parent = name.rpartition(".")[0]  # what came in differs already: the code around this module made it so
        return (parent, modules[parent]) if parent else None
    return None


def _equal(one: Tensor, other: Tensor, precision: str) -> bool:
    return one.shape == other.shape and _same(one, other, apart=torch.zeros_like(one), precision=precision)


def _seen(model: FaceModel, images: Tensor, place: int) -> Seen:
    """What every submodule that runs takes and gives for the image at one place, in the order in which they end."""
    seen: Seen = []

    def rows(values: Any) -> Iterator[Tensor]:
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and len(value) == len(images):
                yield value[place].detach().clone()

    def catcher(name: str, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def catch(_: nn.Module, inputs: Any, output: Any) -> None:
            made = next(rows(output), None)
            if made is not None:
                seen.append((name, module, list(taken.pop(name, ())), made))

        return catch

    def taker(name: str) -> Callable[[nn.Module, Any], None]:
        def take(_: nn.Module, inputs: Any) -> None:
            taken[name] = list(rows(inputs))  # before the module may write over them

        return take

    taken: dict[str, list[Tensor]] = {}
    modules = [(name, module) for name, module in model.named_modules() if name]
    after = [(module, catcher(name, module)) for name, module in modules]
    with hooked(after, [(module, taker(name)) for name, module in modules]):
        _outputs(model, images)
    return seen


def _advice(module: nn.Module | None, *, chance: bool) -> str:
    if chance:
        return "draw no random numbers in evaluation mode (functional dropout takes training=self.training)"
    if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"):
        return "take the network before its dynamic quantisation, whose scales are those of the whole batch"
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None:
        return "give its batch norm running statistics (track_running_stats=True)"
    return "compute every image's output from that image alone in evaluation mode"
