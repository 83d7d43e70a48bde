"""Any network becomes a model: one to four channels, any size, classifier or embedding, told what is wrong."""

import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv import attacks


class Classifier(nn.Module):
    """A small network of an ImageNet classifier's kind; knows nothing of faces."""

    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(256, classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).flatten(1))


def images(count, channels, size, seed=1):
    x = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))
    return torch.round(x * 255) / 255


def network(channels=3):
    torch.manual_seed(0)
    return Classifier(channels)


@pytest.mark.parametrize(
    ("channels", "size"), [(3, (224, 224)), (1, (28, 28)), (4, (17, 31)), (2, (9, 9))], ids=lambda v: str(v)
)
def test_attacks_of_a_classifier_of_any_channels_and_size(channels, size):
    """What comes out is in the ball and judged by the bare network, which is as it was."""
    net = network(channels)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model, x = fa.wrap(net, mean=0.5, std=0.25, input_size=size, channels=channels), images(2, channels, size)
    with torch.no_grad():
        labels = net((x - 0.5) / 0.25).argmax(1)
    cheap = [attacks.pgd(steps=3), attacks.ti_fim(steps=2), attacks.deepfool(steps=3), attacks.apgd(steps=3)]
    cheap += [attacks.cw_l2(steps=5, search_steps=1), attacks.noise_uniform(), attacks.di_fim(steps=2)]
    for attack in cheap if channels < 4 else cheap[:2]:
        made = fa.run(attack, fa.Misclassify(labels), model, x)
        with torch.no_grad():
            achieved = net((made.images - 0.5) / 0.25).argmax(1) != labels
        assert torch.equal(made.success, achieved)
        assert made.images.shape == x.shape
        torch.testing.assert_close(made.linf, (made.images - x).abs().flatten(1).amax(1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_logits_are_the_networks():
    net, x = network(), images(3, 3, (32, 32))
    model = fa.wrap(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), input_size=32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x), net((x - mean) / std))
    assert (model.name, model.image_shape, model.training) == ("Classifier", (3, 32, 32), False)


def test_an_embedding_network_with_and_without_classes():
    net, x = network(), images(3, 3, (32, 32))
    model = fa.wrap(net, input_size=32, output="embedding")
    with torch.no_grad():
        torch.testing.assert_close(model(x), nn.functional.normalize(net(x), dim=1))
    with pytest.raises(ValueError, match="head: expected a class head for logits, got 'Classifier' without one"):
        model.logits(x)
    head = nn.Linear(10, 4)
    both = fa.wrap(net, input_size=32, output="embedding", head=head, name="both")
    with torch.no_grad():
        torch.testing.assert_close(both.logits(x), head(net(x)))


def test_what_a_model_shows_a_model_takes():
    model = fa.wrap(network(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), input_size=32)
    again = fa.FaceModel(network(), mean=model.mean, std=model.std, input_size=model.input_size, name=model.name)
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.std, model.std)
    assert fa.wrap(network(), mean=torch.tensor(0.5), input_size=32).mean.shape == (1, 3, 1, 1)
    assert fa.wrap(network(1), mean=[0.5], input_size=(8, 9)).image_shape == (1, 8, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": 3}, "network: expected a torch.nn.Module, got int"),
        ({"output": "probabilities"}, "output: expected 'logits' or 'embedding', got 'probabilities'"),
        ({"head": nn.Linear(2, 2)}, "head: expected none with output="),
        ({"mean": (0.5,) * 5}, "mean: expected one finite number for each of one to 4 channels, got"),
        ({"channels": 0}, "mean: expected one finite number for each of one to 4 channels, got"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5,)}, "std: expected 3 numbers, as many as mean has, got 1"),
        ({"std": 0.0}, "std: expected numbers > 0"),
        ({"mean": 127.5}, "mean: expected values in the unit of pixels in .*divide by 255"),
        ({"input_size": 0}, "input_size: expected two positive ints"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fa.wrap(**{"network": network(), "input_size": 32, **arguments})
    with pytest.raises(
        ValueError, match=r"images: expected shape \(N, 1, 32, 32\) for 'Classifier', got \(2, 3, 32, 32\)"
    ):
        fa.wrap(network(1), channels=1, input_size=32).logits(images(2, 3, (32, 32)))
