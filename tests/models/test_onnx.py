"""Networks from ONNX files: the original's embeddings and gradients, preprocessing, taps."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings

import numpy as np
import pytest
import torch
from onnx_files import PLAIN, RELU, by_onnxruntime, face_network, graph, images, numbers, onnx, saved
from torch import nn

import fastadv as fa
from fastadv.core.notices import Notice
from fastadv.detection import LayerTap
from fastadv.models import CheckpointError, FaceModel, load, load_onnx, onnx_convert, prepare, read_state_dict
from fastadv.models.identity import model_identity


def gradient(model: FaceModel, x):
    x = x.clone().requires_grad_()
    features = model.features(x)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((features * weights).sum(), x)[0]


# -- what our own networks become --


def exported(model: FaceModel, path, *, dynamo: bool, batch: int | None = None):
    """The backbone as PyTorch exports it."""
    example = torch.randn(batch or 2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    more = {"dynamic_axes": {"input": {0: "N"}, "embedding": {0: "N"}}} if not dynamo else {}
    if dynamo:
        more = {"dynamic_shapes": ({0: torch.export.Dim("N", min=1, max=1024)},), "verbose": False}
    names = {"input_names": ["input"], "output_names": ["embedding"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        more = more if batch is None else {}
        torch.onnx.export(model.backbone, (example,), path, dynamo=dynamo, external_data=False, **names, **more)
    return path


def check_equal(made: FaceModel, original: FaceModel) -> None:
    x = images(original)
    with torch.no_grad():
        torch.testing.assert_close(made(x), original(x), rtol=0, atol=2e-5)
        torch.testing.assert_close(made(x[:1]), original(x[:1]), rtol=0, atol=2e-5)
    expected, got = gradient(original, x), gradient(made, x)
    assert (got - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("synth-resnet", True),
        ("synth-mobile", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("synth-mobile", True), ("synth-resnet", False))),
        *(
            pytest.param(name, dynamo, marks=pytest.mark.slow)
            for name in ("synth-vgg", "synth-shuffle", "mobilefacenet")
            for dynamo in (True, False)
        ),
    ],
)
def test_exported_networks_have_the_embeddings_and_gradients_of_the_original(name, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    original = load(name) if name.startswith("synth") else load(name, random_weights_seed=0)
    path = exported(original, tmp_path / f"{name}.onnx", dynamo=dynamo)
    made = load_onnx(path, mean=original.mean, std=original.std)
    assert (made.name, made.input_size) == (name, original.input_size)
    check_equal(made, original)
    check_equal(prepare(made), original)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamo"), [("iresnet50", True), ("iresnet50", False), ("edgeface_xs", True), ("edgeface_xs", False)]
)
def test_large_networks(name, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    original = load(name, random_weights_seed=0)
    check_equal(load_onnx(exported(original, tmp_path / "net.onnx", dynamo=dynamo), **PLAIN), original)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_export_for_a_fixed_number_of_images_takes_any(batch, tmp_path):
    pytest.importorskip("onnxscript")
    original = load("synth-vgg")
    path = exported(original, tmp_path / "net.onnx", dynamo=False, batch=batch)
    check_equal(load_onnx(path, mean=original.mean, std=original.std), original)


def test_onnx2torch_computes_the_same(tmp_path):
    onnx2torch = pytest.importorskip("onnx2torch", exc_type=ImportError)
    path = saved(tmp_path, face_network())
    made = load_onnx(path, **PLAIN)
    x = images(made)
    other = fa.wrap(onnx2torch.convert(path), input_size=16, output="embedding", **PLAIN)
    check_equal(made, other)
    torch.testing.assert_close(made.features(x), other.features(x))


# -- a network as InsightFace exports its own --


def test_it_is_a_model_of_torch_s_layers_with_the_file_s_names(face):
    model = load_onnx(face, **PLAIN)
    assert (model.name, model.input_size, model.embedding_size) == ("w600k_tiny", (16, 16), 12)
    kinds = [type(module) for module in model.backbone.children()]
    assert kinds.count(nn.Conv2d) == 5
    assert kinds.count(nn.BatchNorm2d) == 7
    assert (kinds.count(nn.BatchNorm1d), kinds.count(nn.Linear), kinds.count(nn.PReLU)) == (1, 1, 3)
    assert model.layers == ("net_Add_9", "net_Add_16")
    assert isinstance(model.backbone.net_Conv_0, nn.Conv2d)
    assert not any(module.training for module in model.modules())
    expected = by_onnxruntime(face, images(model) * 2 - 1)
    torch.testing.assert_close(model.features(images(model)), expected, rtol=1e-5, atol=1e-5)


def test_batch_norms_are_folded(face):
    model = load_onnx(face, **PLAIN)
    prepared = prepare(model)
    left = [name for name, m in prepared.backbone.named_modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert left == []  # the first of each block, which reads a sum, goes into the convolution behind it
    torch.testing.assert_close(prepared(images(model)), model(images(model)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_copy_keeps_its_taps(precision, face):
    model = load_onnx(face, **PLAIN)
    tapped = LayerTap(model=prepare(model, precision=precision))(images(model))
    assert [tuple(value.shape) for value in tapped.values] == [(3, 8), (3, 8)]


def test_taps_can_be_chosen(face):
    assert load_onnx(face, layers=["net_PRelu_2"], **PLAIN).layers == ("net_PRelu_2",)
    with pytest.raises(ValueError, match="layers: expected submodules of the backbone"):
        load_onnx(face, layers=["conv1"], **PLAIN)


def test_without_residual_blocks_the_activations_are_the_taps(tmp_path):
    nodes = [("Conv", "x w", "a"), ("Relu", "a", "b"), ("Conv", "b v", "c"), ("LeakyRelu", "c", "d")]
    nodes += [("GlobalAveragePool", "d", "y")]
    path = saved(tmp_path, graph(nodes, {"w": numbers(4, 3, 3, 3), "v": numbers(4, 4, 3, 3)}))
    assert load_onnx(path, **PLAIN).layers == ("net_Relu_1", "net_LeakyRelu_3")


def test_a_copy_is_its_own(face):
    model = load_onnx(face, **PLAIN)
    before = model(images(model))
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.backbone.net_Conv_0.weight.zero_()
    assert torch.equal(model(images(model)), before)


def test_loading_draws_no_random_numbers(face):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_onnx(face, **PLAIN)
    assert torch.equal(torch.rand(2), expected)


def test_the_identity_is_that_of_weights_and_data_flow(tmp_path, face):
    same, other = face_network(), face_network(seed=1)
    flow = face_network()
    for node in flow.graph.node:
        if node.name == "/net/Add_16":
            node.input[:] = [node.input[0], node.input[0]]
    first, again, weights, wired = (
        model_identity(load_onnx(path, name="one", **PLAIN))
        for path in (face, saved(tmp_path, same), saved(tmp_path, other, "b.onnx"), saved(tmp_path, flow, "c.onnx"))
    )
    assert first == again
    assert first["weights"] != weights["weights"]
    assert {key for key in first if first[key] != wired[key]} >= {"structure"}
    assert " at 0x" not in str(load_onnx(face, **PLAIN).backbone)


# -- attacks --


@pytest.mark.parametrize("name", ["fim", "m-fim"])
def test_attacks(name, face):
    model = load_onnx(face, **PLAIN)
    x = (images(model, 4) * 255).round() / 255
    goal = fa.Impersonate(x.roll(1, 0), threshold=0.99999)
    made = fa.attack(name, model, x, goal=goal, eps=0.1, steps=20)
    assert (made.score_after > made.score_before).all()


def test_surrogates(face):
    """Masks behind the convolutions, gradients past the residual branches: the data flow is found."""
    from fastadv.surrogates import FeatureDropout, SkipGradient, flow

    model = load_onnx(face, name="iresnet", **PLAIN)
    traced = flow.trace_model(model, gradients=True)
    assert traced is not None
    assert len(flow.residuals(model.backbone, traced)) == 2
    bound = SkipGradient(gamma=0.5).bind(model)
    x = images(model)
    torch.testing.assert_close(bound(x), model(x))
    assert not torch.allclose(gradient(bound, x), gradient(model, x))
    assert FeatureDropout().bind(model).layers_used == 5


# -- preprocessing --


def prelude(*nodes, **constants):
    named = [("Identity", "x", "v0"), *((op, form.format(f"v{i}"), f"v{i + 1}") for i, (op, form) in enumerate(nodes))]
    last = f"v{len(nodes)}"
    return face_network(
        prelude=[*named, ("Identity", last, "pre")],
        prelude_constants={name: np.asarray(value, np.float32) for name, value in constants.items()},
    )


INSIDE = {
    "sub_mul": (prelude(("Sub", "{} m"), ("Mul", "{} s"), m=127.5, s=1 / 128), 255),
    "sub_div": (prelude(("Sub", "{} m"), ("Div", "{} s"), m=127.5, s=127.5), 255),
    "only_the_mean": (prelude(("Sub", "{} m"), m=np.reshape([93.6, 104.8, 129.2], (1, 3, 1, 1))), 255),
    "to_one_first": (prelude(("Div", "{} t"), ("Sub", "{} h"), ("Div", "{} h"), t=255.0, h=0.5), 255),
    "reversed": (prelude(("Sub", "m {}"), ("Mul", "s {}"), m=127.5, s=-1 / 128), 255),
    "added": (prelude(("Mul", "{} s"), ("Add", "{} m"), s=1 / 127.5, m=-1.0), 255),
    "of_one": (prelude(("Sub", "{} m"), ("Div", "{} s"), m=[[[0.485]], [[0.456]], [[0.406]]], s=0.225), 1),
    "of_one_added": (prelude(("Mul", "{} two"), ("Add", "{} m"), two=2.0, m=-1.0), 1),
}


@pytest.mark.parametrize("case", INSIDE)
def test_a_normalisation_in_the_file_is_not_applied_twice(case, tmp_path):
    network, top = INSIDE[case]
    path = saved(tmp_path, network)
    model = load_onnx(path)  # without a notice, which would be an error here
    x = images(model)
    torch.testing.assert_close(model.features(x), by_onnxruntime(path, x * top), rtol=1e-4, atol=1e-5)
    again = load_onnx(path, mean=[0, 0, 0], std=1 / top)
    assert torch.equal(again.features(x), model.features(x))
    with pytest.raises(ValueError, match=r"mean, std: expected none, or 0 and .* normalises pixels .* itself, \(x - "):
        load_onnx(path, mean=0.5, std=0.25)


def test_a_normalisation_of_an_unknown_range_needs_the_arguments(tmp_path):
    path = saved(tmp_path, prelude(("Mul", "{} factor"), factor=3.0))
    with pytest.raises(ValueError, match=r"mean, std: expected them for .*compute \(x - 0\) / 0.3333"):
        load_onnx(path)
    assert float(load_onnx(path, mean=0.25, std=0.5).mean.mean()) == 0.25


def test_without_one_the_convention_is_taken_and_said(face):
    with pytest.warns(Notice, match=r"has no normalisation of its own; \(x - 127.5\) / 127.5 .* InsightFace's"):
        model = load_onnx(face)
    assert torch.equal(model.features(images(model)), load_onnx(face, **PLAIN).features(images(model)))


@pytest.mark.parametrize("given", [{"mean": 0.5}, {"std": 0.5}])
def test_one_alone_is_refused(given, face):
    with pytest.raises(ValueError, match=r"mean, std: expected both or none, got mean="):
        load_onnx(face, **given)


def test_channels_on_the_last_axis(tmp_path):
    nodes = [("Transpose", "x", "t", {"perm": [0, 3, 1, 2]}), ("Conv", "t w", "y")]
    path = saved(tmp_path, graph(nodes, {"w": numbers(4, 3, 3, 3)}, shape=(8, 6, 3)))
    model = load_onnx(path, **PLAIN)
    assert model.image_shape == (3, 8, 6)
    x = images(model)
    expected = by_onnxruntime(path, (x * 2 - 1).permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(model.features(x), expected, rtol=1e-5, atol=1e-5)


def test_one_channel(tmp_path):
    model = load_onnx(saved(tmp_path, graph(RELU, shape=(1, 8, 6))), **PLAIN)
    assert model.image_shape == (1, 8, 6)


def test_open_sizes_are_112_or_given(tmp_path):
    path = saved(tmp_path, graph([("GlobalAveragePool", "x", "y")], shape=(3, "H", "W")))
    assert load_onnx(path, **PLAIN).input_size == (112, 112)
    assert load_onnx(path, input_size=(20, 30), **PLAIN).input_size == (20, 30)
    assert load_onnx(path, input_size=24, **PLAIN).input_size == (24, 24)


def test_another_size_than_the_file_s_is_refused(face):
    with pytest.raises(ValueError, match=r"input_size: expected \(16, 16\), what .* takes, got \(32, 32\)"):
        load_onnx(face, input_size=32, **PLAIN)
    model = load_onnx(face, **PLAIN)
    with pytest.raises(ValueError, match=r"images: expected shape \(N, 3, 16, 16\)"):
        model(torch.zeros(1, 3, 17, 16))


def test_logits(face):
    assert load_onnx(face, output="logits", **PLAIN).logits(torch.zeros(1, 3, 16, 16)).shape == (1, 12)


def test_features_of_one_pixel_are_flattened(tmp_path):
    path = saved(tmp_path, graph([("GlobalAveragePool", "x", "out")], flatten=False, axes=4))
    assert load_onnx(path, **PLAIN).embedding_size == 3


def test_one_of_several_outputs(tmp_path):
    nodes = [("Flatten", "x", "first"), ("Relu", "first", "second"), ("Selu", "first", "third")]
    path = saved(tmp_path, graph(nodes, flatten=False, outputs=("first", "second", "third")))
    model = load_onnx(path, output_name="second", **PLAIN)
    assert float(model.features(images(model)).min()) == 0
    with pytest.raises(ValueError, match="output_name: expected one of first, second, third of .*, got none"):
        load_onnx(path, **PLAIN)
    with pytest.raises(ValueError, match="output_name: expected one of first, second, third of .*, got 'fourth'"):
        load_onnx(path, output_name="fourth", **PLAIN)


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE])
def test_other_floating_types_become_float32(kind, tmp_path):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    nodes, weight = (
        ([("Conv", "x w", "y")], (4, 3, 3, 3)) if dtype == np.float16 else ([("Mul", "x w", "y")], (3, 1, 1))
    )
    path = saved(tmp_path, graph(nodes, {"w": numbers(*weight).astype(dtype)}, kind=kind))
    model = load_onnx(path, **PLAIN)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    x = images(model)
    expected = by_onnxruntime(path, (x * 2 - 1).to(torch.float16 if dtype == np.float16 else torch.float64))
    torch.testing.assert_close(model.features(x), expected, rtol=1e-2, atol=1e-2)


def test_weights_of_bfloat16_are_widened(tmp_path):
    weight = onnx.helper.make_tensor("h", onnx.TensorProto.BFLOAT16, [3, 1, 1], [0.5, 2.0, -1.5])
    model = graph([("Cast", "h", "w", {"to": 1}), ("Mul", "x w", "p"), ("Relu", "p", "y")])
    model.graph.initializer.append(weight)
    made = load_onnx(saved(tmp_path, model), **PLAIN)
    x = images(made)
    expected = ((x * 2 - 1) * torch.tensor([0.5, 2.0, -1.5]).view(3, 1, 1)).relu().flatten(1)
    torch.testing.assert_close(made.features(x), expected)


@pytest.mark.parametrize("form", ["value", "value_float", "value_floats"])
def test_constants_as_operators(form, tmp_path):
    value = {"value": onnx.numpy_helper.from_array(np.float32([3])), "value_float": 3.0, "value_floats": [3.0]}[form]
    path = saved(tmp_path, graph([("Relu", "x", "p"), ("Constant", "", "c", {form: value}), ("Mul", "p c", "y")]))
    model = load_onnx(path, mean=0, std=1)
    torch.testing.assert_close(model.features(images(model)), 3 * images(model).flatten(1))


# -- the comparison with onnxruntime --


def test_another_result_than_onnxruntime_s_is_refused(monkeypatch, face):
    monkeypatch.setitem(onnx_convert.OPERATORS, "PRelu", lambda site: site.layer(nn.Tanh()))
    with pytest.raises(
        CheckpointError, match=r"expected embeddings within 0.0001 of onnxruntime's, .* a difference of"
    ):
        load_onnx(face, **PLAIN)


def test_without_onnxruntime_it_is_said(monkeypatch, face):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.warns(Notice, match=r"not compared with onnxruntime, which is not installed; pip install"):
        load_onnx(face, **PLAIN)


def test_where_onnxruntime_fails_it_is_said(monkeypatch, face):
    import onnxruntime

    def fail(*arguments, **options):
        raise RuntimeError("no kernel\nat all")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.warns(Notice, match=r"not compared with onnxruntime, which fails: no kernel$"):
        load_onnx(face, **PLAIN)


def test_without_the_package_its_name_and_command_are_said(monkeypatch, face):
    from fastadv.core import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ONNX: expected onnx .*got no such package; pip install 'fastadv\[onnx\]'"):
        load_onnx(face, **PLAIN)


def test_as_weights_of_an_architecture_it_is_refused_with_advice(face):
    with pytest.raises(CheckpointError, match=r"an ONNX graph; it is a whole network: give it as --model FILE\.onnx"):
        read_state_dict(face)


def test_a_run_has_the_file_in_its_identity(tmp_path, face):
    """A run over another file under the same name is another run."""
    from fastadv.data import RunFolderError

    faces = fa.data.render_faces([0, 1], [0, 0], seed=7).images
    for k, picture in enumerate(faces):
        (tmp_path / f"faces/{k}").mkdir(parents=True)
        small = nn.functional.interpolate(picture[None], 16)[0]
        fa.data.write_png(tmp_path / f"faces/{k}/0.png", fa.data.to_uint8(small))
    source = fa.data.IdentityFolder(tmp_path / "faces", size=16)
    attack = fa.attacks.pgd(steps=2)
    goal = fa.Evade(threshold=0.5)
    run = {"out": tmp_path / "out"}
    made = list(fa.stream(attack, lambda face: goal, load_onnx(face, **PLAIN), source, **run))
    assert len(made) == 2
    face.write_bytes(face_network(seed=1).SerializeToString())
    with pytest.raises(RunFolderError, match="holds another run; weights"):
        list(fa.stream(attack, lambda face: goal, load_onnx(face, **PLAIN), source, **run))
