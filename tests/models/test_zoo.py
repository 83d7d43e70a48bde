"""The architectures: sizes, published names, preprocessing; and the published weights on real faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastadv.models import FaceModel, load, names, read_state_dict, shipped_names

PUBLISHED = ("mobilefacenet", "mobileface_v2", "edgeface_xs")

# name: parameters, embedding size, number of default layers
FACTS = {
    "mobilefacenet": (999_936, 128, 15),
    "mobilefacenet_linear": (1_200_512, 512, 15),
    "mobileface_v2": (882_208, 256, 12),
    "edgeface_base": (18_225_812, 512, 18),
    "edgeface_s_gamma_05": (3_652_520, 512, 18),
    "edgeface_xs": (2_242_620, 512, 18),
    "edgeface_xs_gamma_06": (1_770_492, 512, 18),
    "edgeface_xxs": (1_244_744, 512, 12),
    "iresnet18": (24_025_600, 512, 8),
    "iresnet34": (34_139_328, 512, 16),
    "iresnet50": (43_590_848, 512, 24),
    "iresnet100": (65_156_160, 512, 49),
    "ir50": (43_574_976, 512, 24),  # test_published_names.py and test_architectures.py say where these come from
    "ir100": (65_129_792, 512, 49),
    "adaface_ir18": (24_020_352, 512, 8),
    "adaface_ir50": (43_585_600, 512, 24),
    "adaface_ir101": (65_150_912, 512, 49),
    "magface_iresnet18": (24_025_600, 512, 8),
    "magface_iresnet50": (43_590_848, 512, 24),
    "magface_iresnet100": (65_156_160, 512, 49),
    "se_iresnet50": (43_808_320, 512, 24),
    "ir_se50": (43_797_696, 512, 24),
    "se_resnet50": (26_039_024, 2048, 16),
    "inception_resnet_v1": (23_482_624, 512, 23),
    "sphereface20": (22_670_656, 512, 12),
    "cosface_sphere20": (22_666_944, 512, 12),
    "cosface_sphere64": (47_891_648, 512, 33),
    "mobilenet_v1": (16_580_416, 512, 14),
    "synth-mobile": (135_680, 128, 6),
    "synth-resnet": (576_992, 128, 6),
    "synth-vgg": (193_136, 128, 4),
    "synth-shuffle": (123_968, 128, 7),
}

SIZES = {
    "se_resnet50": (224, 224),
    "inception_resnet_v1": (160, 160),
    "cosface_sphere20": (112, 96),
    "cosface_sphere64": (112, 96),
}


def test_names() -> None:
    assert names() == tuple(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_sizes(name: str) -> None:
    parameters, embedding, layers = FACTS[name]
    model = load(name, random_weights_seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.input_size == SIZES.get(name, (112, 112))
    assert model.name == name
    assert len(model.layers) == layers
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        y = model(torch.rand(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0)))
    assert y.shape == (1, embedding)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(1))
    assert model.embedding_size == embedding


SMALL = ("mobilefacenet", "edgeface_xs", "edgeface_xs_gamma_06", "edgeface_xxs", "mobileface_v2", "iresnet18")


@pytest.mark.parametrize("name", [*SMALL, *shipped_names()])
def test_default_layers_run_in_order_and_once(name: str) -> None:
    model = load(name, random_weights_seed=0)
    seen: list[str] = []
    for layer in model.layers:
        model.backbone.get_submodule(layer).register_forward_hook(lambda *_args, layer=layer: seen.append(layer))
    with torch.no_grad():
        model(torch.zeros(1, 3, 112, 112))
    assert tuple(seen) == model.layers


def norm(prefix: str) -> list[str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{prefix}.{part}" for part in parts]


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (50, (3, 4, 14, 3)), (100, (3, 13, 30, 3))])
def test_iresnet_has_the_published_names(depth: int, blocks: tuple[int, ...]) -> None:
    expected = ["conv1.weight", *norm("bn1"), "prelu.weight"]
    for stage, repeats in enumerate(blocks, start=1):
        for i in range(repeats):
            block = f"layer{stage}.{i}"
            expected += [*norm(f"{block}.bn1"), f"{block}.conv1.weight", *norm(f"{block}.bn2")]
            expected += [f"{block}.prelu.weight", f"{block}.conv2.weight", *norm(f"{block}.bn3")]
            if i == 0:
                expected += [f"{block}.downsample.0.weight", *norm(f"{block}.downsample.1")]
    expected += [*norm("bn2"), "fc.weight", "fc.bias", *norm("features")]
    state = load(f"iresnet{depth}", random_weights_seed=0).backbone.state_dict()
    assert list(state) == expected
    assert state["fc.weight"].shape == (512, 25088)
    assert state["layer1.0.conv2.weight"].shape == (64, 64, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)


def test_colour_normalisation() -> None:
    grey = {name: load(name, random_weights_seed=0) for name in ("mobileface_v2", "edgeface_xs", "iresnet18")}
    levels = torch.tensor([0.0, 127.5, 255.0])
    for name, divisor in (("mobileface_v2", 128.0), ("edgeface_xs", 127.5), ("iresnet18", 127.5)):
        model = grey[name]
        got = (levels / 255 - model.mean.flatten()) / model.std.flatten()
        torch.testing.assert_close(got, (levels - 127.5) / divisor, rtol=1e-6, atol=1e-6)
    model = load("mobilefacenet", random_weights_seed=0)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


def test_random_weights_follow_the_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load("mobileface_v2", random_weights_seed=1).backbone.state_dict()
    assert torch.equal(torch.rand(3), expected)
    again = load("mobileface_v2", random_weights_seed=1).backbone.state_dict()
    other = load("mobileface_v2", random_weights_seed=2).backbone.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc5.weight"], other["fc5.weight"])


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of mobilefacenet, .*; did you mean 'iresnet50'"):
        load("iresnet5O", random_weights_seed=0)
    with pytest.raises(ValueError, match=r"synth-shuffle, got 'zzz'$"):
        load("zzz", random_weights_seed=0)


def test_weights_or_a_seed() -> None:
    with pytest.raises(ValueError, match=r"or random_weights_seed=, got neither"):
        load("mobilefacenet")
    with pytest.raises(ValueError, match=r"got both"):
        load("mobilefacenet", "w.pt", random_weights_seed=0)


@pytest.mark.faces
@pytest.mark.parametrize("name", PUBLISHED)
def test_genuine_pairs_score_higher(
    name: str,
    published: Callable[[str], FaceModel],
    pairs: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    model = published(name)
    with torch.no_grad():
        genuine, impostor = ((model(a) * model(b)).sum(1) for a, b in pairs)
    assert genuine.mean() > impostor.mean() + 0.4
    assert (genuine[:, None] > impostor[None, :]).float().mean() > 0.98


@pytest.mark.faces
def test_mxnet_names_are_all_mapped(published: Callable[[str], FaceModel], data_root: Path) -> None:
    raw = read_state_dict(data_root / "weights" / "mobileface_v2.safetensors")
    state = published("mobileface_v2").backbone.state_dict()
    named = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(raw) == len(named) == 191
    assert torch.equal(named["blocks.6.depthwise.weight"], raw["arg:convolution19_weight"])
    assert torch.equal(named["blocks.11.project_bn.running_var"], raw["aux:batchnorm35_moving_var"])
    assert torch.equal(named["fc5_bn.weight"], raw["arg:fc5_bn_gamma"])
