"""`FaceModel`: what it computes, what it refuses, and that it compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import FaceModel

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


class Tiny(nn.Module):
    """Two convolutions and a linear layer on 6×8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.act = nn.Tanh()
        self.fc = nn.Linear(5 * 6 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).flatten(1))


def tiny(**changes: Any) -> FaceModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {"input_size": (6, 8), "mean": MEAN, "std": STD, "name": "tiny"}
    return FaceModel(Tiny(), **{**options, **changes}).eval()


def images(count: int = 3, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))


def test_features_are_the_backbone_of_the_normalised_images() -> None:
    model = tiny()
    x = images()
    expected = model.backbone((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    assert torch.equal(model.features(x), expected)


def test_embedding_is_the_normalised_feature() -> None:
    model = tiny()
    y = model(images())
    assert y.shape == (3, 4)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(3))
    features = model.features(images())
    torch.testing.assert_close(y, features / features.norm(dim=1, keepdim=True))


def test_images_are_not_changed() -> None:
    x = images()
    before = x.clone()
    tiny()(x)
    assert torch.equal(x, before)


def test_logits_are_the_head_of_the_features() -> None:
    head = nn.Linear(4, 7)
    model = tiny(head=head)
    assert torch.equal(model.logits(images()), head(model.features(images())))


def test_no_head_no_logits() -> None:
    with pytest.raises(ValueError, match="head: expected a class head for logits, got 'tiny' without one"):
        tiny().logits(images())


def test_sizes_and_types() -> None:
    model = tiny(layers=("conv", "act"))
    assert model.embedding_size == 4
    assert model.dtype == torch.float32
    assert model.input_size == (6, 8)
    assert model.layers == ("conv", "act")
    assert model.device == torch.device("cpu")


def test_embedding_size_leaves_the_mode_and_the_statistics() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4))
    model = FaceModel(backbone, input_size=(6, 8), mean=MEAN, std=STD, name="m")
    assert model.embedding_size == 4
    assert all(module.training for module in model.modules())
    assert torch.equal(backbone[2].running_mean, torch.zeros(4))


def test_channels_last_is_kept_up_to_the_backbone() -> None:
    seen: list[Tensor] = []
    model = tiny()
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images().contiguous(memory_format=torch.channels_last))
    model(images())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1].is_contiguous()


def test_input_gradient_agrees_with_float64() -> None:
    single, double = tiny(), tiny().double()
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

    def gradient(model: FaceModel, dtype: torch.dtype) -> Tensor:
        x = images().to(dtype).requires_grad_()
        (result,) = torch.autograd.grad((model(x) * weights.to(dtype)).sum(), x)
        return result

    expected = gradient(double, torch.float64)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(gradient(single, torch.float32).double(), expected, rtol=1e-4, atol=1e-6)


def test_float64_gradient_agrees_with_finite_differences() -> None:
    model = tiny().double()
    assert torch.autograd.gradcheck(model, images(2).double().requires_grad_(), fast_mode=True)


def test_low_precision_backbone_gives_float32() -> None:
    model = tiny()
    model.backbone.bfloat16()
    y = model(images())
    assert model.dtype == torch.bfloat16
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.norm(dim=1), torch.ones(3))


def test_compiles_to_one_graph() -> None:
    model = tiny()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), model(images()))


def test_a_backbone_without_weights() -> None:
    model = FaceModel(nn.Flatten(), input_size=(6, 8), mean=MEAN, std=STD, name="flat").eval()
    assert model.dtype == torch.float32
    assert model.embedding_size == 144


def test_state_dict_holds_weights_only() -> None:
    assert all(key.startswith("backbone.") for key in tiny().state_dict())


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((3, 3, 8, 6), r"\(3, 3, 8, 6\)"),
        ((3, 1, 6, 8), r"\(3, 1, 6, 8\)"),
        ((3, 6, 8), r"\(3, 6, 8\)"),
    ],
)
def test_refuses_other_shapes(shape: tuple[int, ...], got: str) -> None:
    with pytest.raises(ValueError, match=rf"images: expected shape \(N, 3, 6, 8\) for 'tiny', got {got}"):
        tiny()(torch.zeros(shape))


def test_refuses_bytes_and_arrays() -> None:
    with pytest.raises(TypeError, match=r"images: expected a floating-point tensor .* torch.uint8"):
        tiny()(torch.zeros(1, 3, 6, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"images: expected a torch.Tensor, got ndarray"):
        tiny()(images().numpy())


def test_refuses_a_model_cast_as_a_whole() -> None:
    with pytest.raises(
        ValueError, match=r"model: expected a normalisation in float32 or float64, got torch\.bfloat16, since the mod"
    ):
        tiny().bfloat16()(images())


def test_refuses_a_backbone_that_gives_maps() -> None:
    model = FaceModel(nn.Conv2d(3, 4, 1), input_size=(6, 8), mean=MEAN, std=STD, name="maps")
    with pytest.raises(ValueError, match=r"shape \(N, D\) with N=3, got \(3, 4, 6, 8\)"):
        model(images())


def test_refuses_a_backbone_of_another_input_size() -> None:
    with pytest.raises(
        ValueError, match=r"backbone: expected a network that takes one image of input_size=\(10, 10\), got one that f"
    ):
        _ = tiny(input_size=(10, 10)).embedding_size


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": (0.5, 0.5)}, ValueError, "std: expected 2 numbers, as many as mean has, got 3"),
        ({"mean": (0.5, 0.5, float("nan"))}, ValueError, r"mean: expected one finite number"),
        ({"mean": 0.5}, ValueError, r"mean: .* got 0.5"),
        ({"std": (1.0, 0.0, 1.0)}, ValueError, r"std: expected numbers > 0"),
        ({"input_size": (112,)}, ValueError, r"input_size: .* got \(112,\)"),
        ({"input_size": 112}, ValueError, r"input_size: .* got 112"),
        ({"input_size": (112, -1)}, ValueError, r"input_size: expected two positive ints"),
        (
            {"layers": ("conv", "layer9")},
            ValueError,
            r"layers: expected submodules of the backbone \(act, conv, fc\), got 'layer9'",
        ),
        ({"layers": "conv"}, ValueError, r"layers: expected a sequence of names"),
        ({"layers": ("conv", "conv")}, ValueError, r"layers: expected distinct names"),
        ({"name": ""}, TypeError, r"name: expected a non-empty str"),
        ({"head": "linear"}, TypeError, r"head: expected a torch.nn.Module or None, got str"),
    ],
)
def test_refuses_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(**change)


def test_refuses_a_function_as_backbone() -> None:
    with pytest.raises(TypeError, match=r"backbone: expected a torch.nn.Module, got function"):
        FaceModel(lambda x: x, mean=MEAN, std=STD, name="f")  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", [{"mean": (127.5,) * 3}, {"std": (128.0,) * 3}, {"mean": (-104.0, 0.4, 0.4)}])
def test_preprocessing_in_the_unit_of_0_to_255_is_refused(changed: dict) -> None:
    values = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **changed}
    with pytest.raises(ValueError, match=r"expected values in the unit of pixels in \[0, 1\], got .*; divide by 255"):
        FaceModel(nn.Flatten(), input_size=(8, 8), name="n", **values)


def test_a_replaced_model_shares_what_is_not_replaced():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    model = FaceModel(
        network, input_size=(4, 4), mean=(0.1,) * 3, std=(0.3,) * 3, name="one", layers=("1",), head=nn.Linear(5, 2)
    ).eval()
    other = model.replace(name="two", layers=(), head=None)
    assert (other.name, other.layers, other.head, other.training) == ("two", (), None, False)
    assert other.backbone is network
    assert other.mean is model.mean
    assert type(other) is FaceModel
    same = model.replace()
    assert (same.name, same.layers, same.head) == ("one", ("1",), model.head)
