"""Taps: the right numbers, from any form of the model, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional as F

from fastadv.detection import LayerTap, Tapped
from fastadv.models import FaceModel, load, prepare
from fastadv.testing.tolerances import assert_same_bits


def by_hand(model, images, layers):
    """Pooled outputs in float64, layer by layer."""
    kept = {}
    for name in layers:
        hook = model.backbone.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: kept.update({n: o}))
        with torch.no_grad():
            model(images)
        hook.remove()
    return [kept[n].double().flatten(2).mean(2) if kept[n].dim() == 4 else kept[n].double() for n in layers]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("count", [1, 3])
def test_pooled_outputs_of_every_layer(tiny, faces, count):
    tap = LayerTap(model=tiny)
    x = faces(count)
    with torch.no_grad():
        tapped = tap(x)
    assert tapped.layers == tap.names == ("conv", "block", "dense")
    for value, expected in zip(tapped.values, by_hand(tiny, x, tap.names), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert_same_bits(F.normalize(tapped.features, dim=1), tiny(x))
    assert_same_bits(tapped.of("block"), tapped.values[1])
    assert hooks(tiny) == 0


def test_maps_are_kept_if_wanted(tiny, faces):
    x = faces(2)
    with torch.no_grad():
        maps = LayerTap(model=tiny, keep_maps=True)(x).values
        pooled = LayerTap(model=tiny)(x).values
    assert [tuple(m.shape) for m in maps] == [(2, 5, 8, 8), (2, 7, 4, 4), (2, 3, 1, 1)]
    for one, other in zip(maps, pooled, strict=True):
        torch.testing.assert_close(one.mean((2, 3)), other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_model(faces, precision):
    model = load("synth-resnet")
    ready = prepare(model, precision=precision)
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    tapped = LayerTap(model=ready)(x.contiguous(memory_format=torch.channels_last))
    tolerance = 1e-4 if precision == "fp32" else 0.1
    for value, expected in zip(tapped.values, by_hand(model, x, model.layers), strict=True):
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert float((value.double() - expected).norm()) <= tolerance * float(expected.norm())


def test_an_attack_sees_through_it(tiny, faces):
    x = faces(2).requires_grad_(True)
    values = LayerTap(model=tiny)(x).values
    (made,) = torch.autograd.grad(sum(v.square().sum() for v in values), x)
    model = tiny.double()
    y = x.detach().double().requires_grad_(True)
    h = model.backbone.conv((y - model.mean) / model.std)
    b = model.backbone.block(model.backbone.norm(h))
    d = model.backbone.dense(F.relu(b).mean((2, 3)))
    total = h.mean((2, 3)).square().sum() + b.mean((2, 3)).square().sum() + d.square().sum()
    (expected,) = torch.autograd.grad(total, y)
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-7)


def test_a_chosen_layer_and_its_order(tiny, faces):
    tapped = LayerTap(model=tiny, layers=["dense", "conv"])(faces(1))
    assert tapped.layers == ("dense", "conv")
    assert [v.shape[1] for v in tapped.values] == [3, 5]


class Broken(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("broken on the way")


def test_hooks_are_removed_whatever_happens(tiny, faces):
    tap = LayerTap(model=tiny)
    tiny.backbone.never = Broken()
    tiny.backbone.dense = torch.nn.Sequential(tiny.backbone.dense, Broken())
    with pytest.raises(RuntimeError, match="broken on the way"):
        tap(faces(1))
    assert hooks(tiny) == 0
    with pytest.raises(ValueError, match=r"images: expected shape \(N, 3, 16, 16\) for 'tiny', got \(1, 3, 4, 4\)"):
        tap(torch.rand(1, 3, 4, 4))
    assert hooks(tiny) == 0
    del tiny.backbone.block  # gone after the tap was made
    with pytest.raises(AttributeError):
        tap(faces(1))
    assert hooks(tiny) == 0


def test_a_hook_of_the_user_comes_first(tiny, faces):
    with tiny.backbone.conv.register_forward_hook(lambda m, i, o: o * 0):
        tapped = LayerTap(model=tiny)(faces(1))
    assert not tapped.of("conv").any()
    assert hooks(tiny) == 0


def test_threads_do_not_see_each_other(tiny, faces):
    tap = LayerTap(model=tiny)
    batches = [faces(2, seed) for seed in range(8)]
    with torch.no_grad():
        expected = [tap(x).values for x in batches]
    found, begin = {}, threading.Barrier(8)

    def work(i):
        begin.wait()
        with torch.no_grad():
            for _ in range(5):
                found.setdefault(i, []).append(tap(batches[i]).values)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, runs in found.items():
        assert len(runs) == 5
        for run in runs:
            for value, want in zip(run, expected[i], strict=True):
                assert_same_bits(value, want)
    assert hooks(tiny) == 0


def test_activations_are_not_kept(tiny, faces):
    alive = []
    with tiny.backbone.conv.register_forward_hook(lambda m, i, o: alive.append(o.untyped_storage().data_ptr())):
        tapped = LayerTap(model=tiny)(faces(1))
    assert all(value.untyped_storage().data_ptr() not in alive for value in tapped.values)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in tapped.values)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("twice",), "layer 'twice': expected one run in the forward pass, got more"),
        (("never",), "layer 'never': expected one run in the forward pass, got none"),
        (("tokens",), r"layer 'tokens': expected an output of shape \(N, C, H, W\) or \(N, C\), got \(2, 7, 16\)"),
    ],
)
def test_layers_that_cannot_be_tapped(tiny, faces, layers, message):
    with pytest.raises(ValueError, match=message):
        LayerTap(model=tiny, layers=layers)(faces(2))
    assert hooks(tiny) == 0


def test_outputs_that_cannot_be_tapped(tiny, faces):
    with tiny.backbone.conv.register_forward_hook(lambda m, i, o: o.double()), pytest.raises(TypeError) as caught:
        LayerTap(model=tiny)(faces(1))
    assert "layer 'conv': expected an output of float32, bfloat16 or float16, got torch.float64" in str(caught.value)
    lstm = torch.nn.LSTM(4, 4)

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, x):
            return self.lstm(x.flatten(1)[:, :4])[0]

    half = (0.5, 0.5, 0.5)
    model = FaceModel(Pair(), input_size=(8, 8), mean=half, std=half, name="pair", layers=("lstm",)).eval()
    with pytest.raises(TypeError, match="layer 'lstm': expected a tensor as its output, got tuple"):
        LayerTap(model=model)(torch.rand(2, 3, 8, 8))


def test_a_layer_with_other_rows(tiny, faces):
    with (
        tiny.backbone.conv.register_forward_hook(lambda m, i, o: o.repeat(2, 1, 1, 1)),
        pytest.raises(ValueError, match=r"conv' gave 4 rows; expected 2|output of shape"),
    ):
        LayerTap(model=tiny, layers=("conv",))(faces(2))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": torch.nn.ReLU()}, TypeError, "model: expected a FaceModel, got ReLU"),
        ({"layers": "conv"}, TypeError, "layers: expected a sequence of names, got the text 'conv'"),
        ({"layers": ()}, ValueError, "layers: expected one name or more, got none"),
        ({"layers": ("conv", "conv")}, ValueError, "expected distinct names"),
        ({"layers": ("convo",)}, ValueError, "layers: expected submodules of the backbone of 'tiny', got 'convo'"),
    ],
)
def test_mistakes(tiny, fields, error, message):
    with pytest.raises(error, match=message):
        LayerTap(**{"model": tiny, **fields})


def test_training_mode_is_refused(tiny, faces):
    tap = LayerTap(model=tiny)
    tiny.backbone.norm.train()
    with pytest.raises(
        ValueError, match=r"model: expected one in evaluation mode, got 'tiny' in training mode; call \.eval\(\)"
    ):
        LayerTap(model=tiny)
    tiny.train()
    with pytest.raises(ValueError, match="model: expected one in evaluation mode, got 'tiny' in training mode"):
        tap(faces(2))


def test_a_layer_that_was_not_tapped():
    with pytest.raises(ValueError, match="layer: expected one of a, got 'x'"):
        Tapped(layers=("a",), values=(torch.ones(1, 2),), features=torch.ones(1, 2)).of("x")
