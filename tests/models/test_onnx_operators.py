"""Every ONNX operator: what onnxruntime computes, for any number of images, and its derivative."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_files import SHAPE, by_onnxruntime, graph, numbers, onnx, saved

from fastadv.models import CheckpointError, load_onnx
from fastadv.models.onnx_convert import OPERATORS

R = numbers
C, H, W = SHAPE


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def pool(kind: str, **more: object) -> list[tuple]:
    return [(kind, "x", "y", {"kernel_shape": [3, 2], "strides": [2, 1], **more})]


def unary(kind: str, **attributes: object) -> list[tuple]:
    return [(kind, "x", "y", attributes)]


def positive(*nodes: tuple) -> list[tuple]:
    """From ``p``, |x| + 1, on."""
    return [("Abs", "x", "a"), ("Add", "a one", "p"), *nodes]


ONE = {"one": np.float32(1)}
STATISTICS = {"s": R(C), "b": R(C, seed=1), "m": R(C, seed=2), "v": R(C, seed=3, low=0.5)}
SLOPES = R(C, 1, 1, low=0.1)
SIZES = [
    ("Shape", "x", "l"),
    ("Gather", "l zero", "n"),
    ("Unsqueeze", "n axis", "n1"),
    ("Concat", "n1 rest", "t", {"axis": 0}),
]

# name: nodes, constants, opset
CASES: dict[str, tuple] = {
    "conv": ([("Conv", "x w b", "y", {"pads": [1] * 4})], {"w": R(4, C, 3, 3), "b": R(4)}),
    "conv_plain": ([("Conv", "x w", "y", {"strides": [2, 1], "dilations": [1, 2]})], {"w": R(4, C, 3, 2)}),
    "conv_grouped": ([("Conv", "x w b", "y", {"group": 3})], {"w": R(6, 1, 3, 3), "b": R(6)}),
    "conv_one_side": ([("Conv", "x w", "y", {"pads": [0, 1, 2, 0]})], {"w": R(4, C, 3, 3)}),
    "conv_same_upper": ([("Conv", "x w", "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], {"w": R(4, C, 3, 3)}),
    "conv_same_lower": ([("Conv", "x w", "y", {"auto_pad": "SAME_LOWER", "strides": [2, 2]})], {"w": R(4, C, 3, 3)}),
    "conv_valid": ([("Conv", "x w", "y", {"auto_pad": "VALID"})], {"w": R(4, C, 3, 3)}),
    "batch_norm": ([("BatchNormalization", "x s b m v", "y", {"epsilon": 1e-3})], STATISTICS),
    "batch_norm_rows": (
        [("GlobalAveragePool", "x", "p"), ("Flatten", "p", "f"), ("BatchNormalization", "f s b m v", "y")],
        STATISTICS,
    ),
    "layer_norm": ([("LayerNormalization", "x s b", "y")], {"s": R(W), "b": R(W, seed=1)}),
    "layer_norm_two_axes": ([("LayerNormalization", "x s", "y", {"axis": 2, "epsilon": 1e-2})], {"s": R(H, W)}),
    "gemm": ([("Flatten", "x", "f"), ("Gemm", "f w b", "y", {"transB": 1})], {"w": R(5, C * H * W), "b": R(5)}),
    "gemm_scaled": (
        [("Flatten", "x", "f"), ("Gemm", "f w b", "y", {"alpha": 0.5, "beta": 2.0})],
        {"w": R(C * H * W, 5), "b": R(1)},
    ),
    "gemm_without_bias": ([("Flatten", "x", "f"), ("Gemm", "f w", "y")], {"w": R(C * H * W, 5)}),
    "matmul": ([("MatMul", "x w", "p"), ("Add", "p b", "y")], {"w": R(W, 5), "b": R(5)}),
    "matmul_of_two": ([("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "x t", "y")], {}),
    "matmul_from_the_left": ([("MatMul", "w x", "y")], {"w": R(5, H)}),
    "einsum": ([("Einsum", "x x", "y", {"equation": "bchw,bdhw->bcd"})], {}),
    "prelu": ([("PRelu", "x s", "y")], {"s": SLOPES}),
    "prelu_one": ([("PRelu", "x s", "y")], {"s": R(1)}),
    "prelu_of_places": ([("PRelu", "x s", "y")], {"s": R(1, H, W)}),
    "prelu_rows": ([("Flatten", "x", "f"), ("PRelu", "f s", "y")], {"s": R(C * H * W)}),
    "relu": (unary("Relu"), {}),
    "leaky_relu": (unary("LeakyRelu", alpha=0.2), {}),
    "elu": (unary("Elu", alpha=0.7), {}),
    "sigmoid": (unary("Sigmoid"), {}),
    "tanh": (unary("Tanh"), {}),
    "softplus": (unary("Softplus"), {}),
    "hard_sigmoid": (unary("HardSigmoid", alpha=0.3, beta=0.4), {}),
    "hard_swish": (unary("HardSwish"), {}),
    "gelu": (unary("Gelu"), {}, 20),
    "gelu_tanh": (unary("Gelu", approximate="tanh"), {}, 20),
    "mish": (unary("Mish"), {}, 18),
    "swish": (unary("Swish"), {}, 24),
    "softmax": (unary("Softmax", axis=1), {}),
    "softmax_11": (unary("Softmax", axis=3), {}, 11),
    "clip": ([("Clip", "x lo hi", "y")], {"lo": np.float32(-0.4), "hi": np.float32(0.3)}),
    "clip_above": ([("Clip", "x  hi", "y")], {"hi": np.float32(0.3)}),
    "clip_6": ([("Mul", "x ten", "p"), ("Clip", "p lo hi", "y")], {"ten": R(1) * 10, "lo": R() * 0, "hi": R() * 0 + 6}),
    "clip_attributes": (unary("Clip", min=-0.2, max=0.5), {}, 7),
    "max_pool": (pool("MaxPool"), {}),
    "max_pool_padded": (pool("MaxPool", pads=[1, 1, 1, 1], ceil_mode=1), {}),
    "max_pool_one_side": (pool("MaxPool", pads=[0, 1, 2, 0]), {}),
    "max_pool_dilated": (pool("MaxPool", dilations=[2, 2]), {}),
    "average_pool": (pool("AveragePool"), {}),
    "average_pool_padded": (pool("AveragePool", pads=[1, 1, 1, 1]), {}),
    "average_pool_counted": (pool("AveragePool", pads=[0, 1, 1, 0], count_include_pad=1), {}),
    "global_average": (unary("GlobalAveragePool"), {}),
    "global_average_line": ([("Reshape", "x t", "p"), ("GlobalAveragePool", "p", "y")], {"t": ints(0, 3, -1)}),
    "global_maximum": (unary("GlobalMaxPool"), {}),
    "add_of_two": ([("Relu", "x", "p"), ("Add", "p x", "y")], {}),
    "sum_of_three": ([("Relu", "x", "p"), ("Sum", "p x p", "y")], {}),
    "arithmetic": (
        [("Neg", "x", "a"), ("Add", "a c", "b"), ("Sub", "c b", "d"), ("Mul", "d s", "e"), ("Div", "e c", "y")],
        {"c": R(C, 1, 1, low=1), "s": R(1)},
    ),
    "quotient": (positive(("Div", "one p", "y")), ONE),
    "power": (positive(("Pow", "p e", "y")), {**ONE, "e": np.float32(1.7)}),
    "power_of_one_element": (positive(("Pow", "p e", "y")), {**ONE, "e": R(1, 1, 1, 1, low=1)}),
    "functions": (positive(("Sqrt", "p", "b"), ("Log", "b", "c"), ("Exp", "c", "d"), ("Reciprocal", "d", "y")), ONE),
    "erf": (unary("Erf"), {}),
    "minimum": ([("Min", "x c", "p"), ("Max", "p d", "y")], {"c": np.float32(0.5), "d": R(C, 1, 1)}),
    "where": ([("Greater", "x c", "g"), ("Where", "g x d", "y")], {"c": np.float32(0.2), "d": R(W)}),
    "where_not": (
        [("Less", "x c", "l"), ("Greater", "x d", "g"), ("Or", "l g", "o"), ("Not", "o", "n"), ("Where", "n x z", "y")],
        {"c": np.float32(-0.2), "d": np.float32(0.2), "z": np.float32(0)},
    ),
    "cast": ([("Cast", "x", "h", {"to": 1}), ("Mul", "h c", "y")], {"c": R(1)}),
    "cast_of_a_constant": ([("Cast", "c", "d", {"to": 1}), ("Mul", "x d", "y")], {"c": ints(3)}),
    "mean": (unary("ReduceMean", axes=[-1, 2]), {}),
    "mean_18": ([("ReduceMean", "x a", "y", {"keepdims": 0})], {"a": ints(1)}, 18),
    "sum": ([("ReduceSum", "x a", "y")], {"a": ints(2, 3)}),
    "sum_of_nothing": ([("ReduceSum", "x", "y", {"noop_with_empty_axes": 1})], {}),
    "largest": (unary("ReduceMax", axes=[1]), {}),
    "smallest": (unary("ReduceMin", axes=[1]), {}),
    "l2": (unary("ReduceL2", axes=[1]), {}),
    "squares": (unary("ReduceSumSquare", axes=[1]), {}),
    "lp_norm": (unary("LpNormalization", axis=1, p=2), {}),
    "normalised": (
        [
            ("Flatten", "x", "f"),
            ("ReduceL2", "f", "n", {"axes": [1]}),
            ("Clip", "n e", "c"),
            ("Expand", "c l", "d"),
            ("Div", "f d", "y"),
        ],
        {"e": np.float32(1e-9), "l": ints(1, C * H * W)},
    ),
    "identity": ([("Identity", "x", "a"), ("Dropout", "a", "y")], {}),
    "reshape": ([("Reshape", "x t", "y")], {"t": ints(0, -1, W)}),
    "reshape_of_one": ([("Reshape", "x t", "y")], {"t": ints(1, -1)}),
    "reshape_of_one_in_parts": (
        [("Reshape", "x t", "p"), ("Relu", "p", "q"), ("Reshape", "q u", "y")],
        {"t": ints(C, H, W), "u": ints(1, C, W, H)},
    ),
    "reshape_kept": ([("Reshape", "x t", "y")], {"t": ints(-1, C * H * W)}),
    "reshape_from_the_shape": (
        [*SIZES, ("Reshape", "x t", "y")],
        {"zero": ints(0)[0], "axis": ints(0), "rest": ints(-1)},
    ),
    "flatten_from_the_end": ([("Flatten", "x", "y", {"axis": -3})], {}),
    "flatten_rows": ([("Flatten", "x", "f", {"axis": 2}), ("Reshape", "f t", "y")], {"t": ints(1, C, H * W)}),
    "parts_before_images": (
        [
            ("Transpose", "x", "t", {"perm": [1, 0, 2, 3]}),
            ("Split", "t", "a b c", {"axis": 0}),
            ("Squeeze", "a first", "d"),
            ("Squeeze", "c first", "e"),
            ("Sub", "d e", "y"),
        ],
        {"first": ints(0)},
    ),
    "reshape_behind": (
        [
            ("Transpose", "x", "t", {"perm": [1, 0, 2, 3]}),
            ("Reshape", "t l", "r"),
            ("Relu", "r", "s"),
            ("Reshape", "s m", "u"),
            ("Transpose", "u", "y", {"perm": [1, 0, 3, 2]}),
        ],
        {"l": ints(C, H * W), "m": ints(C, 1, H, W)},
    ),
    "squeeze": ([("GlobalAveragePool", "x", "p"), ("Squeeze", "p", "q"), ("Relu", "q", "y")], {}),
    "squeeze_axes": ([("GlobalAveragePool", "x", "p"), ("Squeeze", "p a", "y")], {"a": ints(2, -1)}),
    "squeeze_11": ([("GlobalAveragePool", "x", "p"), ("Squeeze", "p", "y", {"axes": [3]})], {}, 11),
    "unsqueeze": ([("Unsqueeze", "x a", "y")], {"a": ints(-1, 1)}),
    "unsqueeze_11": (unary("Unsqueeze", axes=[2]), {}, 11),
    "transpose": (unary("Transpose", perm=[0, 2, 3, 1]), {}),
    "expand": ([("ReduceMean", "x", "m", {"axes": [2]}), ("Expand", "m l", "y")], {"l": ints(1, C, H, W)}),
    "expand_from_the_shape": (
        [
            *SIZES,
            ("ConstantOfShape", "four", "ones", {"value": onnx.helper.make_tensor("v", 7, [1], [1])}),
            ("Mul", "ones minus", "marks"),
            ("Equal", "t marks", "same"),
            ("Where", "same ones t", "lengths"),
            ("ReduceMean", "x", "m", {"axes": [2]}),
            ("Expand", "m lengths", "y"),
        ],
        {"zero": ints(0)[0], "axis": ints(0), "rest": ints(-1, H, W), "four": ints(4), "minus": ints(-1)},
    ),
    "tile": ([("Tile", "x r", "y")], {"r": ints(1, 2, 1, 3)}),
    "concat": ([("Relu", "x", "p"), ("Concat", "p x", "y", {"axis": -1})], {}),
    "concat_of_a_constant": (
        [*SIZES, ("Expand", "token t", "c"), ("Concat", "c x", "y", {"axis": 1})],
        {"zero": ints(0)[0], "axis": ints(0), "rest": ints(1, H, W), "token": R(1, 1, H, W)},
    ),
    "split": ([("Split", "x s", "a b", {"axis": 2}), ("Concat", "b a", "y", {"axis": 2})], {"s": ints(3, 5)}),
    "split_equal": ([("Split", "x", "a b", {"axis": -1}), ("Sub", "b a", "y")], {}),
    "split_11": ([("Split", "x", "a b", {"axis": 2, "split": [3, 5]}), ("Concat", "b a", "y", {"axis": 2})], {}, 11),
    "split_18": ([("Split", "x", "a b", {"axis": 2, "num_outputs": 2}), ("Sub", "b a", "y")], {}, 18),
    "slice": (
        [("Slice", "x s e a t", "y")],
        {"s": ints(1, -3), "e": ints(2**62, -1), "a": ints(2, 3), "t": ints(2, 1)},
    ),
    "slice_9": (unary("Slice", axes=[1, 2], starts=[1, 0], ends=[3, 5]), {}, 9),
    "gather": ([("Gather", "x i", "y", {"axis": 2})], {"i": ints(0, -1, 3)}),
    "gather_one": ([("Gather", "x i", "y", {"axis": 1})], {"i": ints(-2)[0]}),
    "pad": ([("Pad", "x p v", "y")], {"p": ints(0, 1, 0, 2, 0, 0, 3, 1), "v": np.float32(0.5)}),
    "pad_edge": ([("Pad", "x p", "y", {"mode": "edge"})], {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}),
    "pad_reflect": ([("Pad", "x p", "y", {"mode": "reflect"})], {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}),
    "pad_axes": ([("Pad", "x p  a", "y")], {"p": ints(1, 2), "a": ints(-1)}, 18),
    "pad_10": (unary("Pad", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.1), {}, 10),
    "pad_of_nothing": ([("Pad", "x p", "q"), ("Relu", "q", "y")], {"p": ints(*[0] * 8)}),
    "resize": ([("Resize", "x   s", "y", {"mode": "linear"})], {"s": ints(1, C, 5, 9)}),
    "resize_corners": (
        [("Resize", "x   s", "y", {"mode": "linear", "coordinate_transformation_mode": "align_corners"})],
        {"s": ints(1, C, 5, 9)},
    ),
    "resize_cubic": ([("Resize", "x  f", "y", {"mode": "cubic"})], {"f": np.float32([1, 1, 2, 2])}),
    "resize_nearest": ([("Resize", "x  f", "y", {"mode": "nearest"})], {"f": np.float32([1, 1, 2, 3])}),
    "resize_floor": (
        [("Resize", "x   s", "y", {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"})],
        {"s": ints(1, C, 5, 9)},
    ),
    "upsample": ([("Upsample", "x f", "y", {"mode": "nearest"})], {"f": np.float32([1, 1, 2, 3])}, 9),
    "integers": (
        [
            ("Shape", "x", "l", {"start": 2}),
            ("Slice", "l zero end", "h"),
            ("Div", "h two", "k"),
            ("Mul", "k two", "m"),
            ("Concat", "m minus", "t0", {"axis": 0}),
            ("Concat", "n t0", "t", {"axis": 0}),
            ("Reshape", "x t", "y"),
        ],
        {"zero": ints(0), "end": ints(1), "two": ints(2), "minus": ints(-1), "n": ints(0)},
    ),
    "rounded": (
        [
            ("Cast", "c", "f", {"to": 1}),
            ("Mul", "f h", "g"),
            ("Floor", "g", "a"),
            ("Ceil", "g", "b"),
            ("Add", "a b", "s"),
            ("Mul", "x s", "y"),
        ],
        {"c": ints(3), "h": np.float32([0.5])},
    ),
    "both": (
        [("Greater", "x c", "g"), ("Less", "x d", "l"), ("And", "g l", "b"), ("Where", "b x z", "y")],
        {"c": np.float32(0.1), "d": np.float32(0.8), "z": np.float32(0)},
    ),
}
# lengths that hold the number of images
FOR_ONE_IMAGE = (
    "resize",
    "resize_corners",
    "resize_floor",
    "reshape_of_one",
    "reshape_of_one_in_parts",
    "reshape_behind",
    "flatten_rows",
)


@pytest.mark.parametrize(
    ("case", "batch"), [(c, b) for c in CASES for b in ("N", 1) if b == 1 or c not in FOR_ONE_IMAGE]
)
def test_operator(case, batch, tmp_path):
    nodes, constants, *opset = CASES[case]
    path = saved(tmp_path, graph(nodes, constants, batch=batch, opset=(opset or [17])[0]))
    model = load_onnx(path, mean=0, std=1)
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = by_onnxruntime(path, images, one_by_one=batch == 1)
    torch.testing.assert_close(model.features(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.features(images[:1]), expected[:1], rtol=1e-5, atol=1e-5)
    if batch == 1:
        network = model.backbone.double()
        x = (images * 2 - 1).double().requires_grad_()
        assert torch.autograd.gradcheck(network, x, fast_mode=True)


def test_there_is_a_case_for_each_operator():
    seen = {node[0] for nodes, *_ in CASES.values() for node in nodes}
    assert seen | {"Flatten"} == set(OPERATORS)


def test_the_page_lists_the_operators():
    page = Path(__file__).parents[2] / "docs" / "bring_your_own.md"
    if not page.is_file():
        pytest.skip("not in a source tree")
    section = page.read_text(encoding="utf-8").partition("**Operators.**")[2].partition("\n## ")[0]
    assert set(re.findall(r"(?<=[|,] )[A-Z]\w+", section)) == {*OPERATORS, "Constant"}


REFUSED: dict[str, tuple] = {
    "a convolution in one dimension": (
        graph([("Reshape", "x t", "r"), ("Conv", "r w", "y")], {"t": ints(0, C, -1), "w": R(4, C, 3)}),
        r"a map \(N, C, H, W\) and a window \(H, W\)",
    ),
    "weights that depend on the images": (
        graph([("Conv", "x x", "y", {"kernel_shape": [H, W]})]),
        "weights that are constants",
    ),
    "batch statistics": (
        graph([("BatchNormalization", "x s b m v", "y rm rv", {"training_mode": 1})], STATISTICS),
        "export the network in evaluation mode",
    ),
    "weights that are no numbers": (
        graph([("Conv", "x w", "y")], {"w": R(4, C, 3, 3) * np.nan}),
        r"fit together, got others \(weight with NaN or infinity\) for Conv \('/net/Conv_0', operator 1 of 2\)",
    ),
    "statistics of another width": (
        graph([("BatchNormalization", "x s b m v", "y")], {**STATISTICS, "m": R(C + 1)}),
        "running_mean of shape",
    ),
    "a transposed batch": (
        graph([("Flatten", "x", "f"), ("Gemm", "f w", "y", {"transA": 1})], {"w": R(1, 5)}, batch=1),
        "images on the first axis, got transA=1",
    ),
    "an average without a border": (
        graph(pool("AveragePool", pads=[0, 1, 1, 0])),
        "the same padding on both sides",
    ),
    "softmax over the rest": (graph(unary("Softmax"), opset=11), "the last axis before opset 13, got axis 1"),
    "a cast to integers": (
        graph([("Cast", "x", "i", {"to": 7}), ("Cast", "i", "y", {"to": 1})]),
        "a cast to a floating-point type",
    ),
    "a squeezed batch": (
        graph([("GlobalAveragePool", "x", "p"), ("Squeeze", "p a", "y")], {"a": ints(0, 3)}, batch=1),
        "axes that keep the images apart",
    ),
    "padded images": (graph([("Pad", "x p", "y")], {"p": ints(1, *[0] * 7)}), "the images as they are"),
    "steps back": (
        graph([("Slice", "x s e a t", "y")], {"s": ints(-1), "e": ints(-9), "a": ints(2), "t": ints(-1)}),
        "steps of at least 1",
    ),
    "a table of indices": (
        graph([("Gather", "x i", "y", {"axis": 2})], {"i": ints(0, 1)[None]}),
        "one index, or a list",
    ),
    "an index outside": (
        graph([("Gather", "x i", "y", {"axis": 2})], {"i": ints(0, 9)}),
        "fit together|one that does not",
    ),
    "a size that is no multiple": (
        graph([("Resize", "x  f", "y", {"mode": "linear"})], {"f": np.float32([1, 1, 1.3, 1])}),
        "scales that give whole lengths",
    ),
    "a mode of resizing": (
        graph(
            [("Resize", "x  f", "y", {"mode": "linear", "coordinate_transformation_mode": "asymmetric"})],
            {"f": np.float32([1, 1, 2, 2])},
        ),
        "a mode of torch.nn.functional.interpolate, got linear, asymmetric",
    ),
    "antialias": (
        graph([("Resize", "x  f", "y", {"mode": "linear", "antialias": 1})], {"f": np.float32([1, 1, 2, 2])}, opset=18),
        "without antialias",
    ),
    "more lengths": (
        graph([("Expand", "x l", "y")], {"l": ints(2, 1, C, H, W)}),
        "4 lengths",
    ),
    "a great constant": (
        graph([("ConstantOfShape", "n", "c"), ("ReduceMax", "c", "m"), ("Mul", "x m", "y")], {"n": ints(2**20, 2**20)}),
        "a constant of at most 67,108,864 elements",
    ),
    "a constant expanded": (
        graph(
            [("Expand", "c n", "e"), ("ReduceMax", "e", "m"), ("Mul", "x m", "y")],
            {"c": R(1, 1), "n": ints(2**20, 2**20)},
        ),
        "a constant of at most 67,108,864 elements",
    ),
    "a great border": (
        graph([("Conv", "x w", "y", {"pads": [2**20] * 4})], {"w": R(4, C, 3, 3)}),
        "more than 268,435,456 numbers for an image",
    ),
    "an output of constants": (
        graph(
            [("Add", "c c", "s"), ("Mul", "x s", "y"), ("Flatten", "s", "const")], {"c": R(2, 2)}, outputs=("const",)
        ),
        "an output that depends on the images",
    ),
    "rows of an image": (
        graph([("Flatten", "x", "out", {"axis": 2})], flatten=False),
        r"an output 'out' of shape \(N, D\), got \(3, 48\)",
    ),
    "mixed images": (
        graph([("ReduceMean", "x", "m", {"axes": [0]}), ("Sub", "x m", "y")]),
        "the same embedding of an image alone and in a batch",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_form_that_is_not_converted_is_refused_with_its_place(what, tmp_path):
    model, words = REFUSED[what]
    path = saved(tmp_path, model)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_onnx(path, mean=0, std=1)
    assert str(raised.value).startswith(f"{path}: expected ")
    assert "\n" not in str(raised.value)
