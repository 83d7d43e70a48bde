"""CUDA kernels whose threads work together, compiled for the CPU with threads that take turns: what they compute."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastadv import ops
from fastadv.ops import layers
from fastadv.testing.cases import StepCase
from fastadv.testing.layer_cases import LayerCase
from fastadv.testing.tolerances import assert_same_bits

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
METRICS = {"l2": 0, "cosine": 1}
LAUNCH = re.compile(r"(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library of the compiled source."""
    compiler = shutil.which("c++")
    if compiler is None or not (ROOT / "kernels").is_dir():
        pytest.skip("needs a C++ compiler and the kernels' source")
    folder = tmp_path_factory.mktemp("cuda")
    for part in (ROOT / "kernels", ROOT / "csrc", Path(__file__).parent / "on_host"):
        shutil.copytree(part, folder, dirs_exist_ok=True)
    for name in ("cuda_pipeline.h", "cooperative_groups.h"):
        (folder / name).write_text('#include "cuda_runtime.h"\n')
    for source in (folder / "cuda").glob("*.cu*"):
        text = re.sub("#pragma unroll.*", "", source.read_text())
        text = text.replace("most = 1 << 20", "most = 3")  # so that a block has several tasks
        text = text.replace(
            "extern __shared__ float4 memory[]", "auto* memory = reinterpret_cast<float4*>(on_host::dynamic_shared)"
        )
        source.write_text(LAUNCH.sub(r"on_host::launch(\2, [&] { \1(\3); });", text))
    options = ["-O1", "-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-w", f"-I{folder}"]
    subprocess.run([compiler, *options, folder / "entry.cpp", "-o", folder / "entry.so"], check=True)
    return ctypes.CDLL(str(folder / "entry.so"))


@pytest.fixture(params=["the first thread begins", "the last thread begins"])
def run(request, compiled):
    """Calls a function with tensors and numbers; a missing barrier gives other numbers in one of the orders."""
    compiled.set_order(int(request.param == "the last thread begins"))
    compiled.set_version(90)

    def call(name, *values):
        lowered = [
            ctypes.c_void_p(v.data_ptr())
            if isinstance(v, torch.Tensor)
            else ctypes.c_float(v)
            if isinstance(v, float)
            else None
            if v is None
            else ctypes.c_int64(v)
            for v in values
        ]
        assert getattr(compiled, name)(*lowered) == 0

    return call


def listed(numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def pool(run, maps, warps=0):
    images, row = len(maps[0]), sum(value.shape[1] for value in maps)
    described = [layers.described(value) for value in maps]
    numbers, out = listed(layers.native_maps(described)), torch.full((images, row), float("nan"))
    run("average_pool", numbers, len(numbers), TYPES[maps[0].dtype], out, images, row, warps)
    return out


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_means_of_maps(layout, dtype, run):
    # 8, 16 and 32 shares of a map, with channels that fill teams of warps, and that do not
    shapes = ((64, 7, 7), (40, 24, 23), (33, 33, 34), (256, 1, 1), (32, 33, 33))
    case = LayerCase(images=2, layers=shapes, layout=layout, dtype=dtype)
    maps = case.maps()
    made = pool(run, maps)
    wide = torch.cat([value.double().mean((2, 3)) for value in maps], dim=1)
    size = torch.cat([value.double().abs().mean((2, 3)) for value in maps], dim=1)
    assert bool(((made.double() - wide).abs() <= 4e-6 * size).all())
    for warps in (8, 32):  # many images, and few
        assert_same_bits(pool(run, maps, warps), made)


def distances(run, features, centroids, metric):
    images, count = len(features[0]), len(centroids[0])
    numbers = listed(layers.native_layers(features, centroids))
    scales = torch.full((len(features), count + images), float("nan"))
    out = torch.full((images, len(features), count), float("nan"))
    run("distances", numbers, len(numbers), METRICS[metric], scales, out, images, count)
    return out


def relative(run, features, centroids, own, metric):
    images, count = len(features[0]), len(centroids[0])
    numbers = listed(layers.native_layers(features, centroids))
    scales = torch.full((len(features), count + images), float("nan"))
    chosen = torch.full((images,), -7) if own is None else own.clone()
    seen = layers.empty_seen(features, centroids).fill_(float("nan"))
    out = torch.full((images, len(features), 5), float("nan"))
    sizes = (images, count)
    run("relative", numbers, len(numbers), METRICS[metric], scales, chosen, int(own is None), seen, out, *sizes)
    return out, chosen


def gradient(run, grad, found, features, centroids, metric):
    images, count = len(features[0]), len(centroids[0])
    numbers = listed(layers.native_layers(features, centroids))
    scales = torch.full((len(features), count + images), float("nan"))
    out = torch.full((images, sum(f.shape[1] for f in features)), float("nan"))
    sizes = (images, count, out.shape[1])
    run("gradient", numbers, len(numbers), METRICS[metric], scales, grad, found, out, *sizes)
    return out


def vectors(counts, widths, scale=1.0):
    draw = torch.Generator().manual_seed(sum(counts))
    return [[torch.randn(n, c, generator=draw) * scale for c in widths] for n in counts]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("widths", [(4, 132, 260), (5, 131)], ids=["whole packs", "odd"])
@pytest.mark.parametrize("images", [1, 35])
def test_distances(images, widths, metric, run):
    features, centroids = vectors((images, 37), widths)
    made = distances(run, features, centroids, metric)
    torch.testing.assert_close(
        made, ops.centroid_distances(features, centroids, metric=metric, backend="reference"), rtol=1e-5, atol=0
    )
    few = slice(images - 1, images)  # by the kernel for few images: the same bits
    assert_same_bits(distances(run, [f[few].clone() for f in features], centroids, metric), made[few])


PACKS, ODD = (4, 132), (5, 131)
#: Of few images every combination; of many, which take ten times as long, every pair.
RELATIVE = [(3, widths, metric, own) for widths in (PACKS, ODD) for metric in METRICS for own in (True, False)]
RELATIVE += [(35, PACKS, "l2", True), (35, PACKS, "cosine", False), (35, ODD, "l2", False), (35, ODD, "cosine", True)]


@pytest.mark.parametrize(("images", "widths", "metric", "own"), RELATIVE)
def test_relative_distances(images, widths, metric, own, run):
    features, centroids = vectors((images, 150), widths)
    centroids[1][5] *= 1e-30
    features[0][0] = centroids[0][3]
    mine = torch.arange(images) * 3 % 150 if own else None
    made, chosen = relative(run, features, centroids, mine, metric)
    found = distances(run, features, centroids, metric)
    expected = found[:, -1].argmin(1) if mine is None else mine
    assert torch.equal(chosen, expected)
    at = expected[:, None, None].expand(-1, 2, 1)
    other, d = found.scatter(2, at, float("inf")), found.gather(2, at)[..., 0].double()
    least = other.amin(2).double()
    rank = (other < d[..., None].float()).sum(2) / 149
    ratio = torch.where(d == least, 0.5, d / (d + least))
    assert_same_bits(made[..., :4], torch.stack([d, least, ratio, rank.double()], 2).float())
    mean = found.double().scatter(2, at, 0.0).sum(2) / 149
    torch.testing.assert_close(made[..., 4].double(), d - mean, rtol=1e-7, atol=1e-14)
    some = slice(images - 2, images)  # by the kernel for few images: the same bits
    few = relative(run, [f[some].clone() for f in features], centroids, None if mine is None else mine[some], metric)
    assert_same_bits(few[0], made[some])


def test_a_class_that_there_is_not(run):
    features, centroids = vectors((2, 70), (4,))
    made, _ = relative(run, features, centroids, torch.tensor([70, 0]), "l2")
    assert made[0, 0].isnan().tolist() == [True, False, True, True, True]
    assert not made[1].isnan().any()


@pytest.mark.parametrize("metric", METRICS)
def test_distances_of_extremes(metric, run):
    features, centroids = vectors((12, 20), (132,))
    plain = distances(run, features, centroids, metric)
    features[0][3] *= 1e30
    features[0][4] = 0
    centroids[0][7] *= 1e-30
    centroids[0][8, 5] = float("nan")
    made = distances(run, features, centroids, metric)
    expected = ops.centroid_distances(features, centroids, metric=metric, backend="reference")
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-14, equal_nan=True)
    kept = torch.ones_like(made, dtype=torch.bool)
    kept[3:5], kept[:, :, 7:9] = False, False
    assert_same_bits(made[kept], plain[kept])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kept", [None, (5, 290)], ids=["dense", "two weights"])
def test_derivatives(kept, metric, run):
    features, centroids = vectors((11, 300), (131, 64))
    found = ops.centroid_distances(features, centroids, metric=metric, backend="reference")
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    if kept is not None:
        zero = torch.ones(300, dtype=torch.bool)
        zero[list(kept)] = False
        grad[:, :, zero] = 0
    made = gradient(run, grad, found, features, centroids, metric)
    backward = torch.ops.fastadv.centroid_distances_backward
    expected = backward(grad, found, features, centroids, metric, "reference")
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=2e-6)
    for n in (0, 10):  # whatever its neighbours
        own = [f[n : n + 1].clone() for f in features]
        alone = gradient(run, grad[n : n + 1].clone(), found[n : n + 1].clone(), own, centroids, metric)
        assert_same_bits(alone, made[n : n + 1])


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_of_extremes(metric, run):
    features, centroids = vectors((9, 40), (70,))
    features[0][2] *= 1e25
    features[0][3] = centroids[0][4]
    centroids[0][6] *= 1e-30
    features[0][5] = centroids[0][6] * 2
    found = ops.centroid_distances(features, centroids, metric=metric, backend="reference")
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    made = gradient(run, grad, found, features, centroids, metric)
    backward = torch.ops.fastadv.centroid_distances_backward
    expected = backward(grad, found, features, centroids, metric, "reference")
    size = features[0].double().norm(dim=1, keepdim=True) if metric == "cosine" else torch.ones(9, 1)
    error, expected = (made.double() - expected.double()).abs() * size, expected.double().abs() * size
    assert bool((error <= 1e-5 * (1 + expected)).all())


@pytest.mark.parametrize("version", [90, 80], ids=["a cluster an image", "two passes"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 3, 96, 96), (2, 1, 8, 16)], ids=lambda shape: "x".join(map(str, shape)))
def test_the_momentum_step_has_the_bits_of_the_reference(shape, dtype, norm, version, run, compiled):
    case = StepCase(shape=shape, special=True, each=True, active="some", grad_dtype=dtype)
    expected, i = case.make(), case.make()
    options = {"mu": 0.9, "eps": 0.1, "norm": norm}
    ops.momentum_step_(
        *(expected.x, expected.grad, expected.origin, expected.velocity),
        **{"alpha": expected.alpha, "active": expected.active, "stats": expected.stats, "backend": "reference"},
        **options,
    )
    compiled.set_version(version)
    active, alpha = i.active.to(torch.uint8), i.alpha
    size, partials = i.x[0].numel(), ops.momentum_workspace(i.x)
    run(
        *("momentum_step", i.x, i.grad, i.origin, i.velocity, alpha, 0.1, active, i.stats, partials),
        *(TYPES[dtype], {"l1": 0, "l2": 1}[norm], len(i.x), size),
    )
    for name in ("x", "velocity", "stats"):
        assert_same_bits(getattr(i, name), getattr(expected, name), name)
