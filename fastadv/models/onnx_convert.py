"""ONNX graphs as networks of torch that can be differentiated."""

from __future__ import annotations

import torch

from fastadv.core.errors import Error
from fastadv.models.memory import is_out_of_memory
from fastadv.models.onnx_file import OnnxGraph, refused
from fastadv.models.onnx_layers import LAYERS
from fastadv.models.onnx_network import INPUT, OnnxNetwork, Ref, Sum
from fastadv.models.onnx_site import Building, Site
from fastadv.models.onnx_tensors import TENSORS

OPERATORS = {**LAYERS, **TENSORS}
"""The operators that are converted, by name."""


def convert(graph: OnnxGraph) -> tuple[OnnxNetwork, tuple[str, ...]]:
    """The network of a graph, for any number of images, and the names of its layers that make good taps.

    What depends on constants alone is computed now, the shapes of one image among it; a reshaped value keeps the axis
    of the images open. The taps are the sums at the ends of residual blocks, or the activations of a network
    without them.

    Args:
        graph: of operators among ``OPERATORS``.

    Raises:
        CheckpointError: an operator has a form that is not converted.
    """
    building = Building(graph)
    if graph.channels_last:
        building.values[graph.input] = building.step("channels_last", torch.permute, (Ref(INPUT), (0, 2, 3, 1)))
    for operator in graph.operators:
        site = Site(building, operator)
        try:
            made = OPERATORS[operator.kind](site)
        except Error:
            raise
        except Exception as error:  # a file can hold any numbers, and torch refuses them with any of its errors
            if is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise site.refuse("attributes and constants that fit together", f"others ({reason})") from error
        results = made if isinstance(made, tuple) else (made,)
        building.values.update(zip(operator.outputs, results, strict=False))
    output = building.values[graph.output]
    if not isinstance(output, Ref):
        raise refused(graph.file, "an output that depends on the images", f"{graph.output!r}, which does not")
    shape = tuple(building.traced[output.name][0].shape)
    if len(shape) > 2 and shape[2:] == (1,) * len(shape[2:]):  # (N, D, 1, 1)
        output = building.step("output", torch.flatten, (output, 1))
    elif len(shape) != 2 or shape[0] != (graph.batch or 1) or building.image_axis(output.name) != 0:
        raise refused(graph.file, f"an output {graph.output!r} of shape (N, D)", shape)
    network = OnnxNetwork(building.layers, building.constants, building.steps, output.name)
    sums = [name for name in building.taps if isinstance(building.layers[name], Sum)]
    return network, tuple(sums if len(sums) > 1 else [n for n in building.taps if n not in sums])
