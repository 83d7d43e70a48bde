"""Files as they are published: their class heads, and files of other networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from architectures import NAMES, noise
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.notices import Notice
from fastadv.models import CheckpointError, load


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[[dict[str, Tensor]], Path]]:
    """Saves a state in half precision, and removes the file afterwards: it has tens of megabytes."""
    path = tmp_path / "published.safetensors"

    def saved(state: dict[str, Tensor]) -> Path:
        save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
        return path

    yield saved
    path.unlink(missing_ok=True)


File = Callable[[dict[str, Tensor]], Path]


@pytest.mark.parametrize(
    ("name", "head", "size"), [("se_resnet50", "fc", 2048), ("inception_resnet_v1", "logits", 512)]
)
def test_the_published_classifier_becomes_the_head(name: str, head: str, size: int, file: File) -> None:
    source = load(name, random_weights_seed=1)
    weight, bias = noise(7, size).half().float(), noise(7, seed=1).half().float()
    state = {**source.backbone.state_dict(), f"{head}.weight": weight, f"{head}.bias": bias}
    model = load(name, file(state))
    x = noise(1, 3, *model.input_size)
    with torch.no_grad():
        features, logits = model.features(x), model.logits(x)
    torch.testing.assert_close(logits, F.linear(features, weight, bias))


def test_a_classifier_by_our_own_name_is_kept(file: File) -> None:
    source = load("inception_resnet_v1", random_weights_seed=1)
    head = {"class_head.weight": noise(3, 512), "class_head.bias": noise(3)}
    model = load("inception_resnet_v1", file({**source.backbone.state_dict(), **head}))
    assert model.head is not None
    assert model.head.weight.shape == (3, 512)


def test_angular_classifiers_are_left_out(file: File) -> None:
    sphere = load("sphereface20", random_weights_seed=1).backbone.state_dict()
    with pytest.warns(Notice, match=r"1 left out: fc6\.weight \(512, 7\)"):
        assert load("sphereface20", file({**sphere, "fc6.weight": noise(512, 7)})).head is None
    mobile = load("mobilenet_v1", random_weights_seed=1).backbone.state_dict()
    published = {f"arcface.{key}": value for key, value in mobile.items()}
    with pytest.warns(Notice, match=r"1 left out: head\.weight \(7, 512\)"):
        model = load("mobilenet_v1", file({**published, "head.weight": noise(7, 512)}))
    assert model.head is None
    torch.testing.assert_close(model.backbone.state_dict()["sep.weight"], mobile["sep.weight"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_another_network_is_refused(name: str, file: File) -> None:
    other = load("synth-vgg").backbone.state_dict()
    with pytest.raises(
        CheckpointError,
        match=r"expected tensors that fit the model, got others in .*published\.safetensors: \d+ missing: ",
    ):
        load(name, file(other))


def test_the_two_se_ir_layouts_are_told_apart(file: File) -> None:
    gate = {"body.0.res_layer.5.fc1.weight": noise(4, 64, 1, 1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: body\.0\.res_layer\.5\.fc1\.weight \(.*\)$"):
        load("se_iresnet50", file(gate))
    with pytest.raises(CheckpointError, match=r"1 unexpected: body\.0\.res_layer\.se_block\.fc1\.weight \(.*\)$"):
        load("ir_se50", file({"body.0.res_layer.se_block.fc1.weight": noise(4, 64, 1, 1)}))
