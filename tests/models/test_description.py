"""A network described in a TOML file, and what a description changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastadv as fa
from fastadv.core.errors import Error
from fastadv.core.templates import TEMPLATES
from fastadv.data.alignment import template
from fastadv.models import FaceModel, load, prepare
from fastadv.models.description import DescriptionError, read_description
from fastadv.models.identity import model_identity

NAME = "synth-mobile"


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return noise(2, 3, 112, 112)


def test_the_shortest_description_is_the_architecture(tmp_path: Path, images: torch.Tensor) -> None:
    model = load(written(tmp_path / "m.toml", f'architecture = "{NAME}"'))
    assert (model.name, model.channels, model.input_size, model.template) == (NAME, "rgb", (112, 112), None)
    assert torch.equal(model(images), load(NAME)(images))
    assert model_identity(model) == model_identity(load(NAME))


def test_weights_lie_beside_the_description_or_are_given(tmp_path: Path, images: torch.Tensor) -> None:
    for seed in (1, 2):
        state = load("mobileface_v2", random_weights_seed=seed).backbone.state_dict()
        save_file(state, tmp_path / f"{seed}.safetensors")
    file = written(tmp_path / "m.toml", 'architecture = "mobileface_v2"', 'weights = "1.safetensors"')
    for weights, seed in ((None, 1), (tmp_path / "2.safetensors", 2)):
        assert torch.equal(load(file, weights)(images), load("mobileface_v2", random_weights_seed=seed)(images))
    assert torch.equal(
        load(str(file), random_weights_seed=3)(images), load("mobileface_v2", random_weights_seed=3)(images)
    )


@pytest.mark.parametrize("scale", [1, 255])
def test_the_network_reads_what_is_described(tmp_path: Path, images: torch.Tensor, scale: int) -> None:
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    file = written(
        tmp_path / "m.toml",
        f'architecture = "{NAME}"',
        'channels = "bgr"',
        f"mean = [{', '.join(str(v * scale) for v in mean)}]",
        f"std = [{', '.join(str(v * scale) for v in std)}]",
        f"range = {scale}",
    )
    model = load(file)
    red_first = (images.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model.normalised(images).double(), red_first[:, [2, 1, 0]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.features(images), model.backbone(model.normalised(images)))
    ready = prepare(model)
    torch.testing.assert_close(ready(images), model(images), rtol=1e-4, atol=1e-5)
    assert ready.channels == "bgr"
    assert model_identity(model)["channels"] == "bgr"


def test_one_number_stands_for_three(tmp_path: Path) -> None:
    model = load(written(tmp_path / "m.toml", f'architecture = "{NAME}"', "mean = 127.5", "std = 128", "range = 255"))
    torch.testing.assert_close(model.mean.flatten(), torch.full((3,), 0.5))
    torch.testing.assert_close(model.std.flatten(), torch.full((3,), 128 / 255))


def test_size_and_template(tmp_path: Path) -> None:
    points = template((224, 160)).tolist()
    file = written(
        tmp_path / "m.toml", 'architecture = "se_resnet50"', "input_size = [224, 160]", f"template = {points}"
    )
    model = load(file, random_weights_seed=0)
    assert model.input_size == (224, 160)
    assert model.template == tuple(map(tuple, points))
    assert model(noise(1, 3, 224, 160)).shape == (1, 2048)
    assert model.replace(name="other").template == model.template
    with pytest.raises(Error, match="backbone: expected a network that takes one image of input_size"):
        load(written(tmp_path / "n.toml", f'architecture = "{NAME}"', "input_size = 64"))


def test_a_template_by_name_is_brought_to_the_size_of_the_images(tmp_path: Path) -> None:
    lines = ('architecture = "se_resnet50"', "input_size = [224, 192]", 'template = "sphereface"')
    model = load(written(tmp_path / "m.toml", *lines), random_weights_seed=0)
    assert model.template == tuple((2 * x, 2 * y) for x, y in TEMPLATES["sphereface"].points)
    usual = load(written(tmp_path / "n.toml", f'architecture = "{NAME}"', 'template = "arcface"'))
    assert usual.template == TEMPLATES["arcface"].points


def test_the_mirror_image_is_joined(tmp_path: Path, images: torch.Tensor) -> None:
    model, bare = load(written(tmp_path / "m.toml", f'architecture = "{NAME}"', "mirror = true")), load(NAME)
    both = torch.cat((bare.features(images), bare.features(images.flip(3))), 1)
    assert torch.equal(model.features(images), both)
    assert model.embedding_size == 2 * bare.embedding_size
    torch.testing.assert_close(prepare(model)(images), model(images), rtol=1e-4, atol=1e-5)
    assert model_identity(model) != model_identity(bare)
    assert torch.equal(
        load(written(tmp_path / "n.toml", f'architecture = "{NAME}"', "mirror = false"))(images), bare(images)
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("mean = 0.5",), "m.toml: expected architecture, .* or weights, an ONNX file, got neither"),
        (('architecture = "synth-mobile"', 'template = "facent"'), "template: expected one of .* mean 'facenet'"),
        (('architecture = "synth-mobile"', 'template = "sphereface"'), "the shape of the input, 112 x 112, got sphere"),
        (('architecture = "synth-mobile"', 'weights = "x.onnx"'), "no architecture with the ONNX file .*x.onnx"),
        (('weights = "x.onnx"', "mean = 0.5"), "mean, std: expected both or none|x.onnx"),
        (('architecture = "iresnet5O"', 'weights = "w"'), "name: expected one of .*; did you mean 'iresnet50'"),
        (("architecture = 3",), "m.toml: architecture: expected a text, got 3"),
        (('architecture = "synth-mobile"', "meen = 0.5"), "got 'meen'; did you mean 'mean'"),
        (('architecture = "synth-mobile"', 'channels = "grb"'), "channels: expected one of rgb, bgr, got 'grb'"),
        (('architecture = "synth-mobile"', "mirror = 1"), "mirror: expected true or false, got 1"),
        (('architecture = "synth-mobile"', "range = 256"), "range: expected one of 1, 255, got 256"),
        (('architecture = "synth-mobile"', "range = true"), "range: expected one of 1, 255, got True"),
        (('architecture = "synth-mobile"', "mean = [0.5, 0.5]"), "mean: expected a number, or one each for red, green"),
        (('architecture = "synth-mobile"', "mean = nan"), "mean: expected a number"),
        (
            ('architecture = "synth-mobile"', "mean = 127.5"),
            "unit of pixels in .0, 1., got 127.5; divide by 255",
        ),
        (('architecture = "synth-mobile"', "std = 0"), "std: expected numbers > 0"),
        (('architecture = "synth-mobile"', "input_size = [112]"), "input_size: expected a side in pixels, or .height"),
        (('architecture = "synth-mobile"', "input_size = 1.5"), "input_size: expected a side in pixels"),
        (('architecture = "synth-mobile"', "template = [[1, 2]]"), "template: expected five points .x, y."),
        (('architecture = "synth-mobile"', 'weights = ""'), "weights: expected a text, got ''"),
        (('architecture = "synth-mobile"', 'weights = "gone"'), "weights: expected .*gone, which does not exist"),
        (("architecture =",), "m.toml: expected a description of a network in TOML, got another file: "),
    ],
)
def test_wrong_descriptions_are_named(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(Error, match=message):
        load(written(tmp_path / "m.toml", *lines))


def test_files_that_are_no_descriptions(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="got another file: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "m.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DescriptionError, match="expected a description of a network in TOML"):
        read_description(tmp_path / "m.toml")


# -- the same in Python --


def test_the_order_of_the_colours_in_python(images: torch.Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    usual = fa.wrap(network, input_size=112, mean=mean, std=std, output="embedding")
    other = fa.wrap(network, input_size=112, mean=mean, std=std, output="embedding", channels="bgr")
    torch.testing.assert_close(other.normalised(images), usual.normalised(images).flip(1))
    assert not torch.allclose(other(images), usual(images))
    assert torch.equal(other.replace(channels="rgb")(images), usual(images))
    assert torch.equal(other.replace(name="x")(images), other(images))
    changed = usual.replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal(changed.normalised(images), images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": "grb"}, "channels: expected one of rgb, bgr, got 'grb'"),
        ({"channels": "bgr", "mean": (0.0,), "std": (1.0,)}, "channels: expected 'rgb' for images of 1 channels, got"),
        ({"template": ((1, 2),) * 4}, r"template: expected five points \(x, y\)"),
        ({"template": ((1, float("nan")),) * 5}, r"template: expected five points \(x, y\)"),
        ({"template": 3}, r"template: expected five points \(x, y\)"),
    ],
)
def test_wrong_arguments(given: dict, message: str) -> None:
    usual = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "name": "x"}
    with pytest.raises(ValueError, match=message):
        FaceModel(nn.Flatten(), **{**usual, **given})
