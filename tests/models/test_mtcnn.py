"""MTCNN: a plain implementation of the paper's steps beside the batched one; batches, orders and odd pictures."""

import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fastadv import _native
from fastadv.core.errors import Error
from fastadv.data import FaceDetector
from fastadv.models import MTCNN, CheckpointError
from fastadv.models.mtcnn import detector as cascade_module
from fastadv.models.mtcnn import pyramid
from fastadv.models.mtcnn.areas import SummedAreas
from fastadv.models.mtcnn.weights import load_cascade

CPU = torch.device("cpu")
#: Thresholds at which random networks keep some windows.
SOME = (0.475, 0.4995, 0.508)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, height // 8 + 2, width // 8 + 2)).astype(np.float32))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


SHAPES = ((90, 70), (60, 60), (90, 70), (41, 130), (60, 60))
PICTURES = [picture(*shape, seed=k) for k, shape in enumerate(SHAPES)]


def detector(**settings):
    return MTCNN(**{"random_weights_seed": 1, "thresholds": SOME, **settings})


# one window at a time, as the steps are written down


def activated(network, k, x, pool=None):
    layer = getattr(network, f"conv{k}", None)
    if layer is None:
        layer = getattr(network, f"dense{k}")
        x = x.permute(0, 3, 2, 1).flatten(1) if x.dim() == 4 else x
    x = getattr(network, f"prelu{k}")(layer(x))
    return x if pool is None else F.max_pool2d(x, pool, 2, ceil_mode=True)


def said_by_pnet(pnet, x):
    """A probability and four offsets, (N, 5, h, w)."""
    x = activated(pnet, 3, activated(pnet, 2, activated(pnet, 1, x, 2)))
    return torch.cat((pnet.conv4_1(x).softmax(1)[:, 1:], pnet.conv4_2(x)), 1)


def said_by(network, x):
    """A probability, four offsets and O-Net's ten numbers of landmarks, (N, 5 or 15)."""
    small = hasattr(network, "dense5_1")
    pools, ends = ((3, 3), ("dense5_1", "dense5_2")) if small else ((3, 3, 2), ("dense6_1", "dense6_2", "dense6_3"))
    for k in range(1, 5 if small else 6):
        x = activated(network, k, x, pools[k - 1] if k <= len(pools) else None)
    face, *others = (getattr(network, name)(x) for name in ends)
    return torch.cat((face.softmax(1)[:, 1:], *others), 1)


def greedy(boxes, scores, threshold, of_smaller=False):
    stay = []
    for k in sorted(range(len(boxes)), key=lambda k: (-scores[k], k)):
        for j in stay:
            width, height = (boxes[[j, k], 2:].min(0) - boxes[[j, k], :2].max(0)).clip(min=0)
            area, other = (boxes[[j, k], 2:] - boxes[[j, k], :2]).prod(1)
            if width * height > threshold * (min(area, other) if of_smaller else area + other - width * height):
                break
        else:
            stay.append(k)
    return stay


def square(boxes):
    size = boxes[:, 2:] - boxes[:, :2]
    corner = boxes[:, :2] + size / 2 - size.max(1, keepdims=True) / 2
    return np.concatenate([corner, corner + size.max(1, keepdims=True)], 1)


def moved(boxes, offsets, more):
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + more, 2)


def windows(image, boxes, side):
    cut = []
    for x1, y1, x2, y2 in np.trunc(boxes).astype(int):
        part = image[:, :, max(y1, 1) - 1 : y2, max(x1, 1) - 1 : x2]
        cut.append(F.interpolate(part, (side, side), mode="area"))
    return (torch.cat(cut) - 127.5) / 128


def plainly(networks, image, least_face, factor, thresholds):
    """Boxes, landmarks and scores of one picture."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scale, found = 12 / least_face, []
    while min(height, width) * scale >= 12 - 1e-9:
        level = F.interpolate(pixels, (int(height * scale + 1), int(width * scale + 1)), mode="area")
        maps = said_by_pnet(networks.pnet, (level - 127.5) / 128)[0].numpy()
        y, x = np.nonzero(maps[0] >= thresholds[0])
        corners = np.stack([x, y, x, y], 1) * 2 + np.array([1, 1, 12, 12])
        boxes = np.floor(corners.astype(np.float32) / np.float32(scale))
        stay = sorted(greedy(boxes, maps[0, y, x], 0.5))
        found.append(np.concatenate([boxes, maps[:, y, x].T], 1)[stay])
        scale *= factor
    found = np.concatenate(found) if found else np.zeros((0, 9), np.float32)
    found = found[sorted(greedy(found[:, :4], found[:, 4], 0.7))]
    boxes = square(moved(found[:, :4], found[:, 5:], 0))
    for network, side, threshold in ((networks.rnet, 24, thresholds[1]), (networks.onet, 48, thresholds[2])):
        low, high = np.maximum(np.trunc(boxes), 1)[:, :2] - 1, np.minimum(np.trunc(boxes[:, 2:]), (width, height))
        boxes = boxes[(high > low).all(1)]
        if not len(boxes):
            return np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0)
        said = said_by(network, windows(pixels, boxes, side)).numpy()
        boxes, said = boxes[said[:, 0] > threshold], said[said[:, 0] > threshold]
        if side == 24:
            stay = greedy(boxes, said[:, 0], 0.7)
            boxes = square(moved(boxes[stay], said[stay, 1:5], 1))
    size = boxes[:, 2:] - boxes[:, :2] + 1
    points = size[:, None] * said[:, 5:].reshape(-1, 2, 5).transpose(0, 2, 1) + boxes[:, None, :2] - 1
    boxes = moved(boxes, said[:, 1:5], 1)
    stay = greedy(np.add(boxes, (0, 0, 1, 1)), said[:, 0], 0.7, of_smaller=True)
    return boxes[stay] - (1, 1, 0, 0), points[stay], said[stay, 0]


# with the factor .85, boxes of two levels suppress each other
@pytest.mark.parametrize(("least_face", "factor"), [(20, 0.709), (13, 0.6), (20, 0.85)])
@torch.no_grad()
def test_is_the_plain_implementation(least_face, factor):
    pictures = [PICTURES[1], PICTURES[3], PICTURES[4]]
    got = detector(least_face=least_face, factor=factor)(pictures)
    networks = load_cascade(None, random_weights_seed=1)
    assert sum(map(len, got)) > 10
    for image, found in zip(pictures, got, strict=True):
        boxes, points, scores = plainly(networks, image, least_face, factor, SOME)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, boxes, atol=0.02)
        np.testing.assert_allclose(found.landmarks, points, atol=0.02)


@torch.no_grad()
def test_refined_landmarks_are_those_of_a_second_pass_on_the_pixels_of_the_window():
    one, refined = detector()(PICTURES), detector(refine=True)(PICTURES)
    onet = load_cascade(None, random_weights_seed=1).onet
    for image, first, found in zip(PICTURES, one, refined, strict=True):
        np.testing.assert_array_equal(found.boxes, first.boxes)
        np.testing.assert_array_equal(found.scores, first.scores)
        boxes = square(np.add(found.boxes, (1, 1, 0, 0))).astype(np.float32)
        low = np.maximum(np.trunc(boxes[:, :2]), 1) - 1
        size = np.minimum(np.trunc(boxes[:, 2:]), image.shape[1::-1]) - low
        said = said_by(onet, windows(torch.from_numpy(image).permute(2, 0, 1)[None].float(), boxes, 48))[:, 5:]
        points = low[:, None] + size[:, None] * said.view(-1, 2, 5).transpose(1, 2).numpy()
        np.testing.assert_allclose(found.landmarks, points, atol=0.02)
    assert sum(map(len, refined)) > 10


def same(one, other):
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("boxes", "landmarks", "scores"))


@pytest.mark.parametrize("refine", [False, True])
def test_a_picture_s_faces_do_not_depend_on_the_others(refine):
    find = detector(refine=refine)
    together = find(PICTURES)
    alone = [found for image in PICTURES for found in find([image])]
    backwards = find(PICTURES[::-1])[::-1]
    for k in range(len(PICTURES)):
        assert same(together[k], alone[k])
        assert same(together[k], backwards[k])


def test_nor_on_how_many_go_through_together(monkeypatch):
    whole = detector()(PICTURES)
    monkeypatch.setattr(cascade_module, "_TOGETHER", 1)
    assert all(map(same, whole, detector()(PICTURES)))


@pytest.mark.parametrize("threads", [1, 3])
def test_nor_on_the_number_of_threads_which_stays_what_it_was(threads):
    usual, before = detector()(PICTURES), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        other = detector()
        assert all(map(same, usual, other(PICTURES)))
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as pool:  # a new thread has the process's number
            assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("least_face", [20, 13])
def test_without_compiled_networks_it_finds_the_same(least_face, monkeypatch):
    usual = detector(least_face=least_face)(PICTURES)
    monkeypatch.setattr(_native, "has", lambda symbol: False)
    other = detector(least_face=least_face)
    found = other(PICTURES)
    assert sum(map(len, found)) > 10
    for k, image in enumerate(PICTURES):
        for part, atol in (("boxes", 0.02), ("landmarks", 0.02), ("scores", 1e-5)):
            np.testing.assert_allclose(getattr(found[k], part), getattr(usual[k], part), atol=atol)
        assert same(found[k], other([image])[0])


def test_strips_of_a_large_picture_are_the_picture(monkeypatch):
    image = picture(150, 120)
    (whole,) = detector()([image])
    monkeypatch.setattr(pyramid, "_STRIP", 12 * 75)
    (strips,) = detector()([image])
    assert len(whole) > 0
    assert same(whole, strips)


def test_the_best_score_comes_first_and_parts_have_their_shapes():
    for found in detector()(PICTURES):
        n = len(found)
        assert (found.boxes.shape, found.landmarks.shape, found.scores.shape) == ((n, 4), (n, 5, 2), (n,))
        assert (np.diff(found.scores) <= 0).all()
        assert found.boxes.dtype == found.landmarks.dtype == found.scores.dtype == np.float64


@pytest.mark.parametrize("shape", [(1, 1), (11, 400), (3, 5), (12, 12), (2000, 13), (20, 900)])
def test_tiny_and_narrow_pictures(shape):
    small, usual = detector()([picture(*shape), PICTURES[0]])
    assert same(usual, detector()(PICTURES[:1])[0])
    if min(shape) < 20:  # the least face
        assert len(small) == 0
        assert small.landmarks.shape == (0, 5, 2)


def test_no_pictures_and_pictures_without_a_window():
    assert detector()([]) == []
    (black,) = detector(thresholds=(1, 1, 1))([np.zeros((60, 60, 3), np.uint8)])
    assert len(black) == 0


def test_views_and_read_only_pictures_are_taken():
    image = PICTURES[0]
    frozen = image.copy()
    frozen.flags.writeable = False
    (plain,) = detector()([image])
    assert same(plain, detector()([frozen])[0])
    assert same(plain, detector()([np.ascontiguousarray(image[:, ::-1])[:, ::-1]])[0])


def test_the_caller_s_modes_change_nothing():
    (plain,) = detector()(PICTURES[:1])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (inside,) = detector()(PICTURES[:1])
    assert same(plain, inside)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        "a",
    ],
    ids=["grey", "alpha", "float", "empty", "text"],
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r"images\[1\]: expected \(H, W, 3\) uint8 with pixels, got"):
        detector()([PICTURES[0], image])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"least_face": 11}, r"least_face: expected an integer in \[12, 65536\], got 11"),
        ({"factor": 1.0}, r"factor: expected a number in \[0.1, 0.95\], got 1.0"),
        ({"thresholds": (0.6, 0.7)}, "thresholds: expected one for each of the 3 networks, got"),
        ({"thresholds": 0.6}, "thresholds: expected one for each of the 3 networks, got 0.6"),
        ({"thresholds": (0.6, 0.7, 2)}, r"thresholds: expected a number in \[0, 1\], got 2"),
        ({"device": "nonsense"}, "device: expected cpu"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        detector(**settings)


def test_it_is_a_face_detector_with_an_identity():
    find: FaceDetector = detector()
    assert find.identity == detector().identity
    assert find.identity != detector(factor=0.8).identity
    assert find.identity != detector(refine=True).identity
    assert find.identity != detector(random_weights_seed=2).identity


# weights


def names(module, layers, ends):
    affine = [f"{module}.{name}.{part}" for name in (*layers, *ends) for part in ("weight", "bias")]
    return affine + [f"{module}.prelu{name[-1]}.weight" for name in layers]


def test_names_and_sizes_are_the_published_ones():
    convs = ["conv1", "conv2", "conv3"]
    expected = names("pnet", convs, ("conv4_1", "conv4_2"))
    expected += names("rnet", [*convs, "dense4"], ("dense5_1", "dense5_2"))
    expected += names("onet", [*convs, "conv4", "dense5"], ("dense6_1", "dense6_2", "dense6_3"))
    networks = load_cascade(None, random_weights_seed=0)
    assert sorted(networks.state_dict()) == sorted(expected)
    counts = [sum(p.numel() for p in net.parameters()) for net in (networks.pnet, networks.rnet, networks.onet)]
    assert counts == [6_632, 100_178, 389_040]


def state():
    return {k: v.contiguous() for k, v in load_cascade(None, random_weights_seed=1).state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_a_file(prefix, tmp_path):
    path = tmp_path / "weights"
    save_file({prefix + k: v for k, v in state().items()}, str(path))
    assert MTCNN(path, thresholds=SOME).identity == detector().identity


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A facenet-pytorch that fails when it is imported."""
    package, record = tmp_path / "facenet_pytorch", tmp_path / "facenet_pytorch-2.6.0.dist-info"
    (package / "data").mkdir(parents=True)
    record.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for part in ("pnet", "rnet", "onet"):
        own = {k.removeprefix(f"{part}."): v for k, v in state().items() if k.startswith(part)}
        torch.save(own, package / "data" / f"{part}.pt")
    files = [str(p.relative_to(tmp_path)) for p in package.rglob("*.*")]
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: facenet-pytorch\nVersion: 2.6.0\n")
    (record / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return package


def test_weights_of_an_installed_package_which_is_not_imported(installed):
    assert MTCNN(thresholds=SOME).identity == detector().identity
    assert "facenet_pytorch" not in sys.modules


class Runs:
    def __reduce__(self):
        return os.system, ("false",)


def test_code_in_them_is_not_run(installed):
    torch.save(Runs(), installed / "data" / "rnet.pt")
    with pytest.raises(CheckpointError, match="rnet.pt"):
        MTCNN()


def test_without_weights_the_error_says_how_to_get_them(installed, monkeypatch):
    text = "detector-weights: expected a file with the weights of MTCNN .*; pip install --no-deps facenet-pytorch"
    record = installed.parent / "facenet_pytorch-2.6.0.dist-info" / "RECORD"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "onet" not in line))
    with pytest.raises(Error, match=text):
        MTCNN()

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(Error, match=text):
        MTCNN()


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({k: v for k, v in state().items() if not k.startswith("onet.dense6_3")}, str(tmp_path / "w"))
    with pytest.raises(CheckpointError, match="2 missing: onet.dense6_3.weight, onet.dense6_3.bias"):
        MTCNN(tmp_path / "w")
    with pytest.raises(CheckpointError, match="does not exist"):
        MTCNN(tmp_path / "nowhere")


# means over rectangles


def test_resampling_is_that_of_interpolate():
    pictures = [picture(50, 31), picture(17, 90, 1)]
    areas = SummedAreas(pictures, CPU)
    rng = np.random.default_rng(0)
    boxes, owner = [], []
    for _ in range(60):
        k = int(rng.integers(2))
        height, width = pictures[k].shape[:2]
        left, top = rng.integers(0, width - 1), rng.integers(0, height - 1)
        boxes.append([left, top, rng.integers(left + 1, width + 1), rng.integers(top + 1, height + 1)])
        owner.append(k)
    got = areas.resampled(areas.windows(torch.tensor(owner), torch.tensor(boxes)), (24, 20))
    assert got.stride(1) == 1
    for row, k, (left, top, right, bottom) in zip(got, owner, boxes, strict=True):
        part = torch.from_numpy(pictures[k][top:bottom, left:right]).permute(2, 0, 1)[None].double()
        expected = (F.interpolate(part, (24, 20), mode="area")[0] - 127.5) / 128
        torch.testing.assert_close(row.double(), expected, atol=1e-6, rtol=1e-6)
    rows = areas.resampled(areas.windows(torch.tensor(owner), torch.tensor(boxes)), (24, 20), range(5, 11))
    assert torch.equal(rows, got[:, :, 5:11])


def test_sums_beyond_32_bits_are_right():
    image = np.full((2100, 8200, 3), 255, np.uint8)  # the sum of a channel is 4.4e9
    image[-1] = 0
    areas = SummedAreas([image], CPU)
    got = areas.resampled(areas.windows(torch.tensor([0]), torch.tensor([[8190, 2090, 8200, 2100]])), (2, 2))
    expected = torch.tensor([255.0, 255 * 0.8]).sub(127.5).div(128)
    assert torch.equal(got[0], expected[None, :, None].expand(3, 2, 2))


# on a GPU


@pytest.mark.gpu
def test_on_a_gpu_it_finds_the_same():
    here, there = detector()(PICTURES), detector(device="cuda")(PICTURES)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.5)
