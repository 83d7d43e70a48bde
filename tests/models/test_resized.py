"""The resize inside of a network: against its formula, PIL and PyTorch, its gradient, and its bits in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastadv as fa
from fastadv.data.alignment import center_crop, template
from fastadv.defences import MeanFilter
from fastadv.models import FaceModel, load, prepare
from fastadv.models.resized import Resize, resized
from fastadv.surrogates import FeatureDropout, SkipGradient, StepKey, flow
from fastadv.surrogates.gd_uap import gd_uap

SIZES = [((12, 12), (17, 17)), ((17, 17), (12, 12)), ((12, 12), (7, 6)), ((9, 14), (9, 14)), ((30, 30), (7, 5))]


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def resize(size: tuple[int, int], onto: tuple[int, int]) -> Resize:
    return Resize(size, onto, scale=max(size) / max(onto))


def by_formula(count: int, onto: int, scale: float) -> Tensor:
    """The matrix of the docstring, entry by entry."""
    made = torch.zeros(onto, count, dtype=torch.float64)
    for o in range(onto):
        centre = (count - scale * onto) / 2 + scale * (o + 0.5)
        for i in range(count):
            made[o, i] = max(0.0, 1 - abs(i + 0.5 - centre) / max(1.0, scale))
        made[o] /= made[o].sum()
    return made


@pytest.mark.parametrize(("size", "onto"), SIZES)
def test_is_the_formula_and_the_gradient_is_its_transpose(size, onto):
    x, g = images(2, 3, *size).requires_grad_(), images(2, 3, *onto, seed=1)
    down, across = (by_formula(n, m, max(size) / max(onto)) for n, m in zip(size, onto, strict=True))
    y = resize(size, onto)(x)
    torch.testing.assert_close(y, down @ x @ across.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], down.T @ g @ across, rtol=0, atol=1e-13)


def test_gradcheck():
    x = images(2, 1, 9, 9).requires_grad_()
    assert torch.autograd.gradcheck(resize((9, 9), (6, 5)), (x,))


@pytest.mark.parametrize(("size", "onto"), [((112, 112), (160, 160)), ((160, 160), (112, 112))])
def test_agrees_with_interpolate(size, onto):
    x = images(1, 3, *size)
    expected = F.interpolate(x, onto, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(size, onto)(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("onto", [(112, 112), (160, 160), (112, 96)])
def test_shows_what_a_crop_of_that_size_shows(onto):
    """``center_crop`` reduces by PIL, which rounds to whole levels after each axis."""
    pixels = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
    made = resize((144, 144), onto)(torch.tensor(pixels).permute(2, 0, 1)[None].float())
    expected = torch.tensor(center_crop(pixels, onto)[0]).permute(2, 0, 1)[None].float()
    assert float((made - expected).abs().max()) <= 1.01


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_has_the_same_bits_in_any_slot_and_batch(layout):
    x = images(5, 3, 112, 112, dtype=torch.float32).contiguous(memory_format=layout)
    g = images(5, 3, 112, 96, seed=1, dtype=torch.float32).contiguous(memory_format=layout)
    work = resize((112, 112), (112, 96))

    def both(rows: list[int]) -> tuple[Tensor, Tensor]:
        leaf = x[rows].contiguous(memory_format=layout).requires_grad_()
        y = work(leaf)
        assert y.is_contiguous(memory_format=layout)
        return y.detach(), torch.autograd.grad(y, leaf, g[rows])[0]

    y, gradient = both([0, 1, 2, 3, 4])
    for rows in ([3], [4, 3, 0]):
        one, its = both(rows)
        assert torch.equal(one, y[rows])
        assert torch.equal(its, gradient[rows])


def test_bfloat16_is_computed_in_float32():
    x = images(1, 3, 20, 20, dtype=torch.float32).bfloat16()
    work = resize((20, 20), (13, 13))
    assert torch.equal(work(x), work(x.float()).bfloat16())


class Residual(nn.Module):
    """A convolution, a residual block and a linear layer, of images of 12×10."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6))
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 120, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.fc((x + self.branch(x)).flatten(1))


def small(**more: object) -> FaceModel:
    given = {"input_size": (12, 10), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "layers": ("first", "branch")}
    return FaceModel(Residual(), name="small", head=nn.Linear(8, 4), **{**given, **more}).eval()


def test_a_resized_network_is_the_network_on_resized_images():
    model = small(channels="bgr")
    made = resized(model, (18, 18))
    x = images(3, 3, 18, 18, dtype=torch.float32)
    smaller = Resize((18, 18), (12, 10), scale=1.5)(x)
    torch.testing.assert_close(made(x), model(smaller), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.logits(x), model.logits(smaller), rtol=1e-5, atol=1e-6)
    assert (made.name, made.image_shape, made.channels) == ("small", (3, 18, 18), "bgr")
    assert made.layers == ("network.first", "network.branch")
    assert made.backbone.network is model.backbone
    assert model.input_size == (12, 10)
    assert resized(model, (12, 10)) is model
    assert not any(module.training for module in made.modules())
    assert all(module.training for module in resized(small().train(), (18, 18)).modules())


def test_the_points_of_a_template_move_with_the_crop():
    points = template((112, 96))
    made = resized(small(input_size=(112, 96), template=points.tolist()), (160, 160))
    np.testing.assert_allclose(np.array(made.template), template(160), atol=1e-9)
    assert resized(small(), (18, 18)).template is None


def test_preparing_keeps_the_outputs():
    made = resized(small(), (18, 18))
    x = images(4, 3, 18, 18, dtype=torch.float32)
    expected = made(x).detach()
    torch.testing.assert_close(prepare(made)(x), expected, rtol=1e-5, atol=1e-6)
    assert float((prepare(made, precision="bf16")(x) - expected).abs().max()) < 0.05


def test_surrogates_find_in_it_what_they_find_in_the_network():
    model = small(layers=())
    made = resized(model, (18, 18))
    graph = flow.trace_model(made, gradients=True)
    assert graph is not None
    assert len(flow.residuals(made.backbone, graph)) == 1
    x = images(2, 3, 18, 18, dtype=torch.float32)
    smaller = Resize((18, 18), (12, 10), scale=1.5)(x)
    key = StepKey(seed=3, ids=torch.tensor([5, 6]), ticks=torch.tensor([0, 1]))
    masked = [FeatureDropout(rate=0.2).bind(each)(y, key) for each, y in ((made, x), (model, smaller))]
    torch.testing.assert_close(*masked, rtol=1e-4, atol=1e-5)
    leaf, inner = x.clone().requires_grad_(), smaller.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(SkipGradient(gamma=0.4).bind(each)(y).sum(), y)[0]
        for each, y in ((made, leaf), (model, inner))
    ]
    onto = Resize((18, 18), (12, 10), scale=1.5)(leaf)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(onto, leaf, gradients[1])[0], rtol=1e-4, atol=1e-6)
    assert gd_uap(made, eps=0.1, seed=0, steps=2).delta.shape == (3, 18, 18)


def test_an_attack_passes_the_resize_and_its_image_is_the_same_in_any_company():
    model = resized(load("synth-shuffle"), (128, 128))
    faces = fa.data.render_faces([0, 1, 2, 3], [0, 0, 0, 0], seed=7, size=128).images
    attack, engine = fa.attacks.dfanet_di_m_fim(eps=10 / 255, steps=3), fa.Engine(batch=2, precision="fp32")
    goal = fa.Impersonate(faces.roll(1, 0), threshold=0.9)
    made = fa.run(attack, goal, model, faces, seed=2, engine=engine)
    assert (made.score_after > made.score_before).all()
    again = fa.run(attack, goal.row(2), model, faces[2:3], seed=2, ids=[2], engine=engine)
    assert torch.equal(again.images[0], made.images[2])


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(
        ValueError, match=r"size: expected crops that hold the 12 x 12 pixels of 'small' .* got 12 x 10"
    ):
        resized(small(input_size=(12, 12)), (12, 10))
    with pytest.raises(TypeError, match="model: expected a plain FaceModel, got DefendedModel; resize the network"):
        resized(MeanFilter().wrap(small()), (18, 18))
