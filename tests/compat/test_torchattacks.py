"""The classes of torchattacks over fastadv, beside the original where it is installed."""

import inspect
import warnings

import pytest
import torch
from small import grey_images
from torch import nn

import fastadv as fa
from fastadv.compat import torchattacks

pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32 * 64, 10)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return grey_images(48, size=(32, 32))


@pytest.fixture(scope="module")
def original():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "torchattacks", reason="the original is not installed: pip install --no-deps torchattacks"
        )


def classes(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


def test_constructors_take_what_the_originals_take(original):
    for name in torchattacks.__all__:
        own = inspect.signature(getattr(torchattacks, name).__init__).parameters
        theirs = inspect.signature(getattr(original, name).__init__).parameters
        assert {n: p.default for n, p in own.items()} == {n: p.default for n, p in theirs.items()}, name


CALLS = [
    ("FGSM", {"eps": LEVEL}, None),
    ("FFGSM", {"eps": LEVEL}, None),
    ("BIM", {"eps": LEVEL, "alpha": LEVEL / 4}, None),
    ("PGD", {"eps": LEVEL, "alpha": LEVEL / 4}, None),
    ("MIFGSM", {"eps": LEVEL, "alpha": LEVEL / 4}, None),
    ("DIFGSM", {"eps": LEVEL, "alpha": LEVEL / 4}, None),
    ("TIFGSM", {"eps": 2 * LEVEL, "alpha": LEVEL / 2}, None),
    ("APGD", {"eps": LEVEL}, None),
    ("PGDL2", {"eps": 0.3, "alpha": 0.06}, None),
    ("CW", {"c": 10, "steps": 60}, 1.15),
    ("DeepFool", {}, 1.15),
]


@pytest.mark.parametrize(("name", "arguments", "longer"), CALLS, ids=[name for name, *_ in CALLS])
def test_side_by_side(name, arguments, longer, original, network, images):
    """No more images survive than there, but for two that rounding to 8 bits may bring back; norms are as short."""
    labels = classes(network, images)
    found = []
    for library in (original, torchattacks):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the original's APGD warns of itself
            made = getattr(library, name)(network, **arguments)(images, labels).detach()
        assert made.shape == images.shape
        hit = classes(network, made) != labels
        found.append((int(hit.sum()), (made - images).flatten(1)[hit].norm(dim=1).median()))
        if name not in ("CW", "DeepFool", "PGDL2"):
            assert float((made - images).abs().max()) <= arguments["eps"] + 1e-6
    assert found[1][0] >= found[0][0] - 2
    assert found[0][0] > 0
    if longer is not None:
        assert found[1][1] <= longer * found[0][1]


def test_modes_reach_the_classes_that_they_name(network, images):
    labels = classes(network, images)
    attack = torchattacks.PGD(network, eps=64 * LEVEL, alpha=4 * LEVEL, steps=30)
    attack.set_mode_targeted_by_label()
    wanted = (labels + 1) % 10
    assert (attack.attack_mode, attack.targeted) == ("targeted(label)", True)
    assert (classes(network, attack(images, wanted)) == wanted).float().mean() > 0.9
    attack.set_mode_targeted_by_function(lambda inputs, own: (own + 2) % 10)
    assert (classes(network, attack(images, labels)) == (labels + 2) % 10).float().mean() > 0.9
    attack.set_mode_targeted_random()
    assert (classes(network, attack(images, labels)) != labels).all()
    attack.set_mode_targeted_least_likely(kth_min=2)
    with torch.no_grad():
        second_last = network(images).argsort(1)[:, 1]
    assert (classes(network, attack(images, labels)) == second_last).float().mean() > 0.8
    attack.set_mode_default()
    assert (attack.attack_mode, attack.targeted) == ("default", False)


def test_normalised_images_in_and_out(network, images):
    labels = classes(network, images)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    m, s = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    class OfNormalised(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network(x * s + m)

    attack = torchattacks.BIM(OfNormalised(), eps=LEVEL, alpha=LEVEL / 4)
    attack.set_normalization_used(mean=mean, std=std)
    made = attack((images - m) / s, labels) * s + m
    assert float((made - images).abs().max()) <= LEVEL + 1e-5
    plain = torchattacks.BIM(network, eps=LEVEL, alpha=LEVEL / 4)(images, labels)
    assert int((classes(network, made) != labels).sum()) == int((classes(network, plain) != labels).sum())


def test_the_network_is_as_it_was(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).train()
    torchattacks.FGSM(network)(images[:2], torch.tensor([0, 1]))
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_a_loader_is_attacked_and_written_once(network, images, tmp_path):
    labels = classes(network, images)
    loader = [(images[:20], labels[:20]), (images[20:], labels[20:])]
    attack = torchattacks.FGSM(network, eps=LEVEL)
    left, l2, _ = attack.save(loader, tmp_path / "a.pt", return_verbose=True, save_predictions=True)
    held = torch.load(tmp_path / "a.pt", weights_only=True)
    assert sorted(held) == ["adv_inputs", "labels", "preds"]
    assert torch.equal(held["labels"], labels)
    assert torch.equal(held["adv_inputs"], attack(images, labels))
    assert left == pytest.approx(100 * float((held["preds"] == labels).float().mean()))
    assert l2 > 0


def test_a_model_of_fastadv_and_no_attack_at_all(network, images):
    model = fa.wrap(network, input_size=32)
    labels = classes(network, images)
    torch.manual_seed(1)
    first = torchattacks.PGD(model)(images, labels)
    torch.manual_seed(1)
    assert torch.equal(first, torchattacks.PGD(network)(images, labels))
    assert torch.equal(torchattacks.VANILA(network)(images), images)
    assert repr(torchattacks.FGSM(network)).startswith("FGSM(model_name=Sequential, attack_mode=default")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n, x: torchattacks.FGSM(3), TypeError, "model: expected a torch.nn.Module, got int"),
        (lambda n, x: torchattacks.FGSM(n)(x), ValueError, r"labels: expected the classes \(N,\)"),
        (lambda n, x: torchattacks.FGSM(n, eps=-1), ValueError, "eps"),
        (lambda n, x: torchattacks.APGD(n, norm="L1"), ValueError, "norm: expected 'Linf' or 'L2', got 'L1'"),
        (lambda n, x: torchattacks.APGD(n, rho=0.5), ValueError, "eot_iter, rho: expected 1 and 0.75"),
        (lambda n, x: torchattacks.DeepFool(n).set_mode_targeted_random(), ValueError, "no targeted mode"),
        (lambda n, x: torchattacks.PGD(n).set_model_training_mode(True), ValueError, "model_training: expected False"),
        (lambda n, x: torchattacks.PGD(n).set_mode_targeted_least_likely(0), ValueError, "kth_min: expected 1 or more"),
        (lambda n, x: torchattacks.SINIFGSM(n), AttributeError, "SINIFGSM: fastadv has no such class; .* FGSM"),
    ],
)
def test_errors(call, error, message, network, images):
    with pytest.raises(error, match=message):
        call(network, images)
