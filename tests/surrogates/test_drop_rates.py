"""The drop rate of an architecture, where none is given."""

import pytest
from torch import nn

from fastadv.models import FaceModel, load
from fastadv.surrogates.feature_dropout import FeatureDropout


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("iresnet50", 0.1),
        ("se_resnet50", 0.1),
        ("se_iresnet50", 0.1),
        ("SENet-50", 0.1),
        ("inception_resnet_v1", 0.05),
        ("mobilenet_v1", 0.025),
    ],
)
def test_the_papers_rates_for_its_architectures(name, rate):
    assert FeatureDropout().rate_for(_named(name)) == rate
    assert FeatureDropout(rate=0.3).rate_for(_named(name)) == 0.3


@pytest.mark.parametrize(
    ("name", "convolutions", "rate"),
    [
        ("mobileface_v2", 37, 0.0125),  # measured
        ("mobilefacenet", 51, 0.0125 * 37 / 51),
        ("edgeface_xs", 26, 0.0125 * 37 / 26),
        ("iresnet18", 21, 0.1),
        ("iresnet100", 103, 0.1 * 53 / 103),
        ("sphereface20", 20, 0.1),
    ],
)
def test_other_networks_have_the_rate_of_their_number_of_convolutions(name, convolutions, rate):
    model = load(name, random_weights_seed=0)
    assert sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules()) == convolutions
    assert FeatureDropout().rate_for(model) == pytest.approx(rate, rel=1e-12)


def test_a_network_of_ones_own_has_a_rate():
    """Few full convolutions have that of ResNet-50, few with a depthwise one that of MobileNet."""
    assert FeatureDropout().rate_for(_named("mine")) == 0.1
    mine = FaceModel(nn.Conv2d(3, 3, 3, groups=3), mean=(0, 0, 0), std=(1, 1, 1), name="mine").eval()
    assert FeatureDropout().rate_for(mine) == 0.025
    grouped = FaceModel(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), mean=(0, 0, 0), std=(1, 1, 1), name="mine"
    )
    assert FeatureDropout().rate_for(grouped.eval()) == 0.1


def _named(name: str) -> FaceModel:
    return FaceModel(nn.Conv2d(3, 2, 3), mean=(0, 0, 0), std=(1, 1, 1), name=name).eval()


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), "0.1"])
def test_refuses_rates(rate):
    with pytest.raises(ValueError, match=r"rate: expected None or a number in \[0, 1\), got"):
        FeatureDropout(rate=rate)
