"""RED networks: the layers and skips of the paper, files of weights, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fastadv.models import CheckpointError
from fastadv.models.red import REDNet, load_denoiser, network_of


def trained(seed: int = 0, **shape: int) -> REDNet:
    """A network that is not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = REDNet(**shape)
        nn.init.normal_(network.decoder[-1].weight, std=0.05)
        for layer in (*network.encoder, *network.decoder):
            nn.init.normal_(layer.bias, std=0.01)
    return network.eval().requires_grad_(False)


def by_hand(network: REDNet, x: torch.Tensor) -> torch.Tensor:
    """Equation by equation, deconvolutions of stride 1 as convolutions with the kernel turned round."""
    half = len(network.encoder)
    e = [x]
    for k, layer in enumerate(network.encoder):
        e.append(F.conv2d(e[k], layer.weight, layer.bias, layer.stride, 1).relu())
    d = e[half]
    for k, layer in enumerate(network.decoder, 1):
        if k == half and layer.stride != (1, 1):
            spread = d.new_zeros(*d.shape[:2], *x.shape[2:])
            spread[:, :, ::2, ::2] = d
            d = spread
        d = F.conv2d(d, layer.weight.transpose(0, 1).flip(2, 3), layer.bias, padding=1)
        if k == half:
            return x + d
        d = (d + e[half - k] if (half - k) % 2 == 0 else d).relu()
    raise AssertionError


@pytest.mark.parametrize("layers", [10, 20, 30])
def test_layers_and_parameters(layers):
    network = REDNet(layers=layers)
    half = layers // 2
    kinds = [type(m) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert kinds == [nn.Conv2d] * half + [nn.ConvTranspose2d] * half
    assert {m.kernel_size for m in (*network.encoder, *network.decoder)} == {(3, 3)}
    inner = (layers - 2) * (64 * 64 * 9 + 64)
    assert sum(p.numel() for p in network.parameters()) == inner + (3 * 64 * 9 + 64) + (64 * 3 * 9 + 3)
    assert (network.layers, network.width) == (layers, 64)
    assert repr(network).startswith(f"REDNet(\n  layers={layers}, width=64, stride=1")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layers", [4, 6, 8, 10, 30])
def test_the_skips_are_those_of_the_paper(layers, stride):
    network = trained(width=5, layers=layers, stride=stride).double()
    for size in ((12, 12), (13, 9), (7, 8), (1, 3)):
        x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        made = network(x)
        assert made.shape == x.shape
        torch.testing.assert_close(made, by_hand(network, x))


@pytest.mark.parametrize("layers", [4, 10, 12, 30])
def test_every_second_layer_has_a_skip(layers):
    """With the layers behind it silent, a convolution of even number still reaches the output; an odd one does not."""
    half, reached = layers // 2, []
    for k in range(1, half):
        network = trained(width=4, layers=layers)
        for layer in network.encoder[k:]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        bias = network.encoder[k - 1].bias.fill_(5.0).requires_grad_()
        (gradient,) = torch.autograd.grad(network(torch.rand(1, 3, 8, 8)).square().sum(), bias)
        reached.append(bool(gradient.any()))
    assert reached == [k % 2 == 0 for k in range(1, half)]


@pytest.mark.parametrize("stride", [1, 2])
def test_it_begins_as_the_identity(stride):
    x = torch.rand(2, 3, 11, 14)
    assert torch.equal(REDNet(width=8, stride=stride)(x), x)


def test_maps_neither_vanish_nor_explode_at_first():
    """Thirty layers of random weights, and the gradient is of the size of one of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = REDNet(width=32)
    last = {}
    network.decoder[-1].register_forward_pre_hook(lambda module, given: last.update(maps=given[0]))
    network(torch.rand(2, 3, 32, 32))
    assert 0.1 < float(last["maps"].detach().square().mean().sqrt()) < 10


def test_gradients_agree_with_differences_and_with_float64():
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    small = trained(width=3, layers=6, stride=2).double()
    assert torch.autograd.gradcheck(small, (x.requires_grad_(),), eps=1e-6)
    wide = trained(width=16)
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(4))
    single = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(wide(single).square().sum(), single)
    double = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(wide.double()(double).square().sum(), double)
    assert float((g - expected).norm() / expected.norm()) < 1e-5


def test_neighbours_and_memory_order_change_no_bit():
    network = trained(width=12, stride=2)
    x = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    y = network(x)
    assert torch.equal(network(x[[5, 0, 3, 3, 1, 2]]), y[[5, 0, 3, 3, 1, 2]])
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), y)
    assert network(x[:0]).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("shape", [{"width": 6, "layers": 10, "stride": 2}, {"width": 3, "layers": 30, "stride": 1}])
def test_a_file_tells_the_shape(shape, tmp_path):
    network = trained(**shape)
    file = tmp_path / "red.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    random = torch.get_rng_state()
    again = load_denoiser(file)
    assert torch.equal(torch.get_rng_state(), random)
    assert (again.width, again.layers, int(again.stride)) == (shape["width"], shape["layers"], shape["stride"])
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(again(x), network(x))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_half_weights_are_computed_with_in_float32(tmp_path):
    state = {k: v.half().contiguous() if v.dim() > 1 else v for k, v in trained(width=4).state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    again = load_denoiser(tmp_path / "half.safetensors")
    assert again.dtype == torch.float32
    assert torch.equal(again.encoder[3].weight.half(), state["encoder.3.weight"])


STATE = {k: v.contiguous() for k, v in trained(width=3, layers=6).state_dict().items()}


def without(*names):
    return {k: v for k, v in STATE.items() if k not in names}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": torch.zeros(2)}, "expected a denoiser with the tensors encoder.0.weight and stride, got weight in"),
        (without("stride"), "expected a denoiser with the tensors .*, got decoder.0.bias, .*, ... in"),
        (
            {**STATE, "stride": torch.tensor(3)},
            "expected a denoiser, got other tensors in it: stride: expected an integer in .1, 2., got 3",
        ),
        (
            {**STATE, "stride": torch.tensor(1.0)},
            "expected a denoiser with the tensors encoder.0.weight and stride, got",
        ),
        (
            {**STATE, "stride": torch.tensor([1, 1])},
            "expected a denoiser with the tensors encoder.0.weight and stride, got",
        ),
        (without("decoder.1.bias"), "expected tensors that fit the model, got others in it: 1 missing: decoder.1.bias"),
        (
            {**STATE, "more": torch.zeros(1)},
            "expected tensors that fit the model, got others in it: 1 unexpected: more",
        ),
        (
            {**STATE, "encoder.1.weight": torch.zeros(3, 3, 5, 5)},
            r"expected tensors that fit the model, got others in it: 1 misshapen: encoder.1.weight .expected \(3, 3, 3",
        ),
        (
            {**STATE, "encoder.1.bias": torch.tensor([0, float("nan"), 0])},
            "expected finite numbers, got NaN or infinity in it: 1 non-finite: encoder.1.bias",
        ),
    ],
)
def test_states_that_do_not_fit(state, words):
    with pytest.raises(CheckpointError, match=f"weights: {words}"):
        network_of(state, source="it")


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(CheckpointError, match="none.safetensors, which does not exist"):
        load_denoiser(tmp_path / "none.safetensors")
    torch.save({"epoch": 1, "network": {f"module.{k}": v for k, v in STATE.items()}}, tmp_path / "red.pt")
    assert all(torch.equal(v, STATE[k]) for k, v in load_denoiser(tmp_path / "red.pt").state_dict().items())
    file = tmp_path / "red.safetensors"
    save_file(STATE, file)
    for damaged in (file.read_bytes()[:500], b"", b"text"):
        file.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match="got .*red.safetensors, (a|an) (safetensors file that is cut|empty file|text)"
        ):
            load_denoiser(file)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"width": 0}, "width: expected an integer in .1, 512., got 0"),
        ({"width": 8.0}, "width: expected an integer"),
        ({"layers": 2}, "layers: expected an integer in .4, 100., got 2"),
        ({"layers": 15}, "layers: expected an even number, half of them convolutions, got 15"),
        ({"stride": 3}, "stride: expected an integer in .1, 2., got 3"),
        ({"stride": True}, "stride: expected an integer"),
    ],
)
def test_shapes_that_cannot_be(shape, words):
    with pytest.raises(ValueError, match=words):
        REDNet(**shape)


def test_seeds_decide():
    first, same, other = (trained(seed, width=4, layers=4) for seed in (0, 0, 1))
    pairs = itertools.pairwise((first, same, other))
    equal = [all(torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True)) for x, y in pairs]
    assert equal == [True, False]
