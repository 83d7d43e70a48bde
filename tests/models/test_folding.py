"""Batch norms that stand before a convolution or a linear layer: folded exactly, or left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from batch_norms import batch_norms, both, error, randomised
from torch import Tensor, nn

from fastadv.core.errors import ArgumentError
from fastadv.models import FaceModel, fold_batch_norms, prepare
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d
from fastadv.models.untied_bias import UntiedBiasConv2d

SHAPE = (6, 11, 8)  # channels, height, width


def folded(network: nn.Module, shape: tuple[int, int, int] = SHAPE, **options: Any) -> nn.Module:
    return fold_batch_norms(copy.deepcopy(network), image_shape=shape, **options)


def images(count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# -- a convolution --

CONVOLUTIONS = {
    # what the convolution is, and whether its bias depends on the position
    "3x3": ({"kernel_size": 3, "padding": 1}, True),
    "no_bias": ({"kernel_size": 3, "padding": 1, "bias": False}, True),
    "wide_padding": ({"kernel_size": 3, "padding": 2}, True),
    "stride": ({"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}, True),
    "uneven": ({"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1)}, True),
    "dilation": ({"kernel_size": 3, "padding": 2, "dilation": 2}, True),
    "groups": ({"kernel_size": 3, "padding": 1, "groups": 3, "bias": False}, True),
    "depthwise": ({"kernel_size": 3, "padding": 1, "groups": 6}, True),
    "same": ({"kernel_size": 4, "padding": "same"}, True),
    "no_padding": ({"kernel_size": 3, "bias": False}, False),
    "valid": ({"kernel_size": 3, "padding": "valid", "groups": 2}, False),
    "1x1": ({"kernel_size": 1, "stride": 2}, False),
    "reflection": ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, False),
}


def before_a_convolution(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    outputs = 6 if options.get("groups") == 6 else 12
    return randomised(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, outputs, **options)))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_computes_what_both_did(case: str) -> None:
    options, untied = CONVOLUTIONS[case]
    network, x = before_a_convolution(**options).double(), images()
    exact, single = folded(network), folded(network.float())
    network.double()
    assert not batch_norms(exact)
    assert type(exact[1]) is type(single[1]) is (UntiedBiasConv2d if untied else nn.Conv2d)
    for got, rounded, expected in zip(both(exact, x), both(single, x.float()), both(network, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert error(rounded, expected) < 1e-6


def test_the_bias_counts_the_taps_that_meet_no_padding() -> None:
    network = randomised(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3, padding=1, bias=False)))
    norm, convolution = network
    torch.nn.init.ones_(convolution.weight)
    torch.nn.init.zeros_(norm.running_mean)
    norm.bias.data = torch.tensor([0.5, 2.0])
    taps = torch.tensor([[4.0, 6.0, 6.0, 4.0], [6.0, 9.0, 9.0, 6.0], [4.0, 6.0, 6.0, 4.0]])
    made = folded(network, (2, 3, 4))[1]
    assert torch.equal(made.untied_bias, (2.5 * taps)[None, None])
    torch.testing.assert_close(made.weight[0, :, 0, 0], norm.weight / (norm.running_var + norm.eps).sqrt())


def test_batch_norms_on_both_sides_are_folded() -> None:
    torch.manual_seed(0)
    layers = (nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.PReLU(5))
    network, x = randomised(nn.Sequential(*layers)).double(), images()
    made = folded(network)
    assert not batch_norms(made)
    torch.testing.assert_close(both(made, x), both(network, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels_last", [True, False])
def test_bf16_is_as_near_as_without_folding(channels_last: bool) -> None:
    network = before_a_convolution(kernel_size=3, padding=1, bias=False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = (images(8) + network[0].running_mean.view(-1, 1, 1)).bfloat16().contiguous(memory_format=layout)
    expected = copy.deepcopy(network).double()(x.double())
    y = folded(network).bfloat16()(x)
    network[1].bfloat16()
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout)
    assert error(y, expected) <= 1.5 * error(network(x), expected)


@pytest.mark.parametrize("size", [(11, 9), (12, 8), (8, 11), (1, 1)])
def test_maps_of_another_size_are_refused(size: tuple[int, int]) -> None:
    made = folded(before_a_convolution(kernel_size=3, padding=1, stride=2))
    with pytest.raises(ArgumentError, match=r"input: expected shape \(N, 6, 11, 8\).* got \(2, 6, .*image_shape"):
        made(torch.rand(2, 6, *size))
    with pytest.raises(ArgumentError, match=r"input: expected .* got \(6, 11, 8\)"):
        made(torch.rand(6, 11, 8))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_depthwise_convolution_with_a_stride_keeps_its_twin(precision: str) -> None:
    backbone = before_a_convolution(kernel_size=3, padding=1, groups=6, stride=2)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), *backbone, nn.Flatten())
    model = FaceModel(network, input_size=(8, 8), mean=(0,) * 3, std=(1,) * 3, name="m").eval()
    ready = prepare(model, precision=precision)
    assert batch_norms(ready.backbone) == ["2"]
    assert isinstance(ready.backbone[3], FrozenDepthwiseConv2d) == (precision == "bf16")


# The tracer itself instantiates functions, which is deprecated.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_and_is_exported_for_any_number_of_images() -> None:
    made, x = folded(before_a_convolution(kernel_size=3, padding=1)).requires_grad_(False), images().float()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(both(compiled, x), both(made, x))
    program = torch.export.export(made, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    torch.testing.assert_close(program.module()(images(7).float()), made(images(7).float()))


# -- a linear layer --


class Run(nn.Module):
    """Layers, and a forward pass that a test gives."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def with_layers(run: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        Run(
            run,
            bn=nn.BatchNorm2d(6),
            rows=nn.BatchNorm1d(6),
            dropout=nn.Dropout(0.4),
            channels=nn.Dropout2d(0.4),
            flat=nn.Flatten(),
            tokens=nn.Flatten(2),
            fc=nn.Linear(6 * 11 * 8, 5),
            short=nn.Linear(6, 5, bias=False),
            columns=nn.Linear(8, 8),
            square=nn.BatchNorm1d(8),
            wide=nn.Linear(88, 3),
            conv=nn.Conv2d(6, 6, 3, padding=1),
            other=nn.Conv2d(6, 6, 3, padding=1),
            part=nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)),
            inner=nn.Sequential(nn.Conv2d(6, 4, 3, padding=1)),
        )
    ).double()


LINEAR: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "method": (lambda m, x: m.fc(m.bn(x).flatten(1)), {"bn"}),
    "named_argument": (lambda m, x: m.fc(m.bn(x).flatten(start_dim=1)), {"bn"}),
    "function": (lambda m, x: m.fc(torch.flatten(m.bn(x), 1)), {"bn"}),
    "layer": (lambda m, x: m.fc(m.flat(m.bn(x))), {"bn"}),
    "dropout": (lambda m, x: m.fc(m.dropout(m.flat(m.channels(m.bn(x))))), {"bn"}),
    "rows": (lambda m, x: m.short(m.rows(x.mean((2, 3)))), {"rows"}),
    "channels_of_tokens": (lambda m, x: m.fc(m.rows(x.flatten(2)).flatten(1)), {"rows"}),
    "from_the_third_axis": (lambda m, x: m.wide(m.bn(x).flatten(2)), set()),
    "of_columns": (lambda m, x: m.columns(m.bn(x)), set()),
    "of_as_many_channels": (lambda m, x: m.columns(m.square(x[:, :, :8].mean(1))), set()),
    "reshaped": (lambda m, x: m.fc(m.bn(x).reshape(len(x), -1)), set()),
    "changed": (lambda m, x: m.fc(m.bn(x).relu().flatten(1)), set()),
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_layer_computes_what_both_did(case: str) -> None:
    run, foldable = LINEAR[case]
    network, x = with_layers(run), images()
    made = folded(network)
    torch.testing.assert_close(both(made, x), both(network, x), rtol=1e-11, atol=1e-11)
    assert set(batch_norms(network)) - set(batch_norms(made)) == foldable


# -- when it must not fold --

ELSEWHERE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch_norm_read_twice": lambda m, x: m.conv(y := m.bn(x)) + y,
    "batch_norm_called_twice": lambda m, x: m.conv(m.bn(x)) + m.other(m.bn(x)),
    "convolution_called_twice": lambda m, x: m.conv(m.conv(m.bn(x))),
    "weight_read_elsewhere": lambda m, x: m.conv(m.bn(x)) * m.conv.weight.sum(),
    "statistics_read_elsewhere": lambda m, x: m.conv(m.bn(x)) * m.bn.running_mean.sum(),
    "dropout_read_twice": lambda m, x: m.conv(y := m.channels(m.bn(x))) + y,
    "shape_read": lambda m, x: m.conv(y := m.bn(x)).reshape(y.shape),
    "something_between": lambda m, x: m.conv(m.bn(x).relu()),
    "a_branch_on_values": lambda m, x: m.conv(m.bn(x) if x.max() < 99 else x),
    "behind_a_convolution_that_is_kept": lambda m, x: m.conv(m.bn(m.other(x))),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_others_read_stays(case: str) -> None:
    network, x = with_layers(ELSEWHERE[case]), images()
    made = folded(network, keep=("other",))
    assert torch.equal(made(x), network(x))
    assert batch_norms(made) == batch_norms(network)


KEPT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    # what runs, and which name is kept
    "batch_norm": (lambda m, x: m.conv(m.bn(x)), "bn"),
    "dropout": (lambda m, x: m.conv(m.channels(m.bn(x))), "channels"),
    "container": (lambda m, x: m.conv(m.part(x)), "part"),
    "flattening": (lambda m, x: m.fc(m.flat(m.bn(x))), "flat"),
}


def outputs_of(network: nn.Module, name: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    network(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_gives_what_it_gave(case: str) -> None:
    run, name = KEPT[case]
    network, x = with_layers(run), images()
    made = folded(network, keep=(name,))
    torch.testing.assert_close(outputs_of(made, name, x), outputs_of(network, name, x), rtol=1e-12, atol=1e-12)
    assert batch_norms(made) == batch_norms(network)
    assert batch_norms(folded(network)) != batch_norms(network)


@pytest.mark.parametrize("case", KEPT)
def test_what_is_hooked_is_not_folded(case: str) -> None:
    run, name = KEPT[case]
    network, x, seen = with_layers(run), images(), []
    network.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out))
    made = folded(network)
    seen.clear()
    assert torch.equal(made(x), network(x))
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_what_a_hook_sees_enter_is_not_folded() -> None:
    network, seen = with_layers(lambda m, x: m.inner(m.bn(x))), []
    assert "bn" not in batch_norms(folded(network))
    for name in ("inner", "inner.0"):
        hooked = copy.deepcopy(network)
        hooked.get_submodule(name).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        assert "bn" in batch_norms(folded(hooked))
    assert len(seen) == 2 * 1  # one pass each, of a copy
    assert torch.equal(seen[0], seen[1])


def test_a_convolution_that_is_kept_gives_what_it_gave() -> None:
    network, x = with_layers(lambda m, x: m.conv(m.bn(x)).relu()), images()
    made = folded(network, keep=("conv",))
    assert "bn" not in batch_norms(made)
    torch.testing.assert_close(outputs_of(made, "conv", x), outputs_of(network, "conv", x), rtol=1e-12, atol=1e-12)


def test_a_kept_container_gives_what_its_convolution_gave() -> None:
    """The batch norm behind it is not folded into it either."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(6, 5, 3), nn.ReLU()), (nn.Conv2d(5, 4, 1),), (nn.BatchNorm2d(4),)
    network, x = randomised(nn.Sequential(*(nn.Sequential(*part) for part in layers))).double(), images()
    made = folded(network, keep=("1",))
    assert torch.equal(outputs_of(made, "1", x), outputs_of(network, "1", x))
    assert batch_norms(folded(network)) == []


def test_a_batch_norm_without_statistics_is_not_folded() -> None:
    network = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.Conv2d(6, 6, 3)).eval()
    assert batch_norms(folded(network)) == ["0"]


def test_a_convolution_under_two_names_is_replaced_under_both() -> None:
    network = with_layers(lambda m, x: m.again[0](m.bn(x)))
    network.again, network.norms = nn.ModuleList([network.conv]), nn.ModuleList([network.bn])
    made, x = folded(network), images()
    torch.testing.assert_close(made(x), network(x), rtol=1e-12, atol=1e-12)
    assert made.again[0] is made.conv
    assert "bn" not in batch_norms(made)


def test_a_weight_that_two_convolutions_share_changes_in_one() -> None:
    network = with_layers(lambda m, x: m.other(m.conv(m.bn(x))))
    network.other.weight = network.conv.weight
    made, x = folded(network), images()
    torch.testing.assert_close(made(x), network(x), rtol=1e-12, atol=1e-12)
    assert "bn" not in batch_norms(made)
