"""Networks that are scripted, quantised, exported, optimised or without a gradient: attacked, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastadv as fa
from fastadv import attacks
from fastadv.models import prepare

SIZE = (16, 16)
# PyTorch announces the end of TorchScript and of torch.ao
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Flatten(), nn.Linear(512, 12))
        return nn.Sequential(*layers).eval()


def faces(seed: int) -> Tensor:
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def wrapped(network: nn.Module) -> fa.FaceModel:
    return fa.FaceModel(network, input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine").eval()


def attacked(network: nn.Module, attack: object = None, **kwargs) -> Tensor:
    goal = fa.Impersonate(faces(2), threshold=0.9999)
    return fa.run(attack or attacks.pgd(steps=2), goal, wrapped(network), faces(1), **kwargs).images


class Within(nn.Module):
    """The network in a mode, or with something done to its input or output."""

    def __init__(
        self,
        mode: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.net, self.mode, self.before, self.after = net(), mode, before, after

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return self.after(self.net(self.before(x)))


def static() -> nn.Module:
    ao = torch.ao.quantization
    made = nn.Sequential(ao.QuantStub(), nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), ao.DeQuantStub()).eval()
    made.qconfig = ao.get_default_qconfig("fbgemm")
    ao.prepare(made, inplace=True)
    made(faces(0))
    return ao.convert(made, inplace=True)


@pytest.mark.parametrize(
    "kind",
    [
        torch.jit.script,
        lambda n: torch.jit.trace(n, faces(0)),
        lambda n: torch.jit.freeze(torch.jit.script(n)),
        torch.fx.symbolic_trace,
    ],
    ids=["scripted", "traced", "frozen", "fx"],
)
def test_what_has_a_gradient_is_attacked_as_the_network_itself(kind):
    made = kind(net())
    before = [(p.requires_grad, p.is_leaf) for p in made.parameters()]
    torch.testing.assert_close(attacked(made), attacked(net()), rtol=0, atol=0)
    assert [(p.requires_grad, p.is_leaf) for p in made.parameters()] == before
    half = fa.Engine(precision="bf16")
    assert (attacked(made, engine=half) - faces(1)).abs().amax() > 1 / 255


@pytest.mark.parametrize(
    "kind",
    [
        lambda: Within(mode=torch.no_grad),
        lambda: Within(mode=torch.inference_mode),
        lambda: Within(after=Tensor.detach),
        lambda: Within(before=Tensor.detach),
        lambda: Within(after=lambda x: torch.from_numpy(x.detach().numpy())),
        lambda: torch.jit.optimize_for_inference(torch.jit.script(net())),
        static,
    ],
    ids=["no_grad", "inference", "detached", "input detached", "numpy", "optimised", "quantised"],
)
def test_without_a_gradient_an_attack_that_needs_one_says_so_and_the_others_run(kind):
    network = kind()
    with pytest.raises(fa.Error, match=r"model: expected a network whose outputs have a gradient, got one.*quantised"):
        attacked(network)
    assert attacked(network, attacks.noise_uniform()).shape == (3, 3, *SIZE)


def test_a_gradient_that_comes_from_something_else_than_the_images_is_none():
    network = Within(before=Tensor.detach)
    extra = torch.zeros(12, requires_grad=True)
    network.after = lambda x: x + network.extra[0]
    network.extra = [extra]  # no parameter: it is not frozen
    with pytest.raises(fa.Error, match="model: expected a network whose outputs have a gradient"):
        attacked(network)


def test_dynamic_quantisation_is_named():
    made = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(fa.Error, match=r"submodule 'backbone\.4' \(Linear\).*before its dynamic quantisation"):
        attacked(made)


@pytest.mark.slow  # torch.export takes seconds to import
def test_what_torch_export_makes_is_named():
    program = torch.export.export(net(), (faces(0),))
    with pytest.raises(TypeError, match="backbone: expected a torch.nn.Module, got ExportedProgram; wrap the network"):
        wrapped(program)
    with pytest.raises(
        fa.Error, match=r"evaluation mode, got 'mine', which cannot .* wrap the network that was export"
    ):
        wrapped(program.module())
    within = fa.FaceModel(
        nn.Sequential(program.module()), mean=(0.5,) * 3, std=(0.5,) * 3, name="mine", input_size=SIZE
    )
    with pytest.raises(fa.Error, match="call .eval"):
        prepare(within)
    with pytest.raises(fa.Error, match="wrap the network that was exported"):
        within.eval()


def test_a_network_that_cannot_be_copied_is_named():
    network = net()
    network[4] = nn.utils.weight_norm(network[4])
    with pytest.raises(
        fa.Error, match=r"model: expected a network that copy.deepcopy can copy, got 'mine'.*parametriz"
    ):
        attacked(network)
