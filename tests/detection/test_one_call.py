"""From images to a detector in one call: it tells them apart, keeps what it draws the line with apart, and saves."""

import pytest
import torch
from small import grey_images
from torch import nn

import fastadv as fa
from fastadv.detection import FitConfig, LayerTap, fit

CONFIG = FitConfig(kind="mlp", hidden=16, epochs=20, batch=16, lr=0.01)
LABELS = torch.arange(40) % 5


@pytest.fixture(scope="module")
def model() -> fa.FaceModel:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)]
    return fa.wrap(nn.Sequential(*body), input_size=16, layers=("0", "2"), name="small")


@pytest.fixture(scope="module")
def natural() -> torch.Tensor:
    return grey_images(40, size=(16, 16))


@pytest.fixture(scope="module")
def attacked(natural) -> torch.Tensor:
    return (1 - natural) * 0.5  # far from natural in every layer


@pytest.mark.parametrize("reading", ["raw", "relative"])
def test_it_tells_the_images_apart(model, natural, attacked, tmp_path, reading):
    detector = fit(model, natural, attacked, labels=LABELS, config=CONFIG, reading=reading)
    assert detector.trajectory.reading == reading
    tap = LayerTap(model=model, layers=detector.layers)
    calm, seen = (detector.score(tap(images).values) for images in (natural, attacked))
    assert float((seen[:, None] > calm[None]).float().mean()) > 0.95
    assert detector.layers == (("0", "2") if reading == "raw" else ("0", "2", "embedding"))
    assert detector.thresholds.natural == detector.thresholds.adversarial == 10
    detector.save(tmp_path / "detector.safetensors")
    again = fa.load_detector(tmp_path / "detector.safetensors")
    assert torch.equal(
        fa.Guard(model=model, detector=again)(natural).scores, fa.Guard(model=model, detector=detector)(natural).scores
    )


def test_the_same_call_gives_the_same_detector_and_names_its_attacks(model, natural, attacked):
    named = {"one": attacked, "two": attacked[:9]}
    first, second = (fit(model, natural, named, labels=LABELS, config=CONFIG) for _ in range(2))
    assert first.provenance == {"attacks": "one, two"}
    weights = [list(each.network.state_dict().values()) for each in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert first.thresholds == second.thresholds
    assert first.thresholds.adversarial == 10 + 2


def test_without_labels_the_head_says_the_classes(model, natural, attacked):
    with torch.no_grad():
        said = model.logits(natural).argmax(1)
    first = fit(model, natural, attacked, config=CONFIG)
    second = fit(model, natural, attacked, labels=said, config=CONFIG)
    assert first.trajectory.representatives.classes == second.trajectory.representatives.classes
    assert first.trajectory.head == second.trajectory.head == tuple("01234")
    other = fit(model, natural, attacked, labels=(said + 1) % 5, config=CONFIG)  # the head speaks of other classes
    assert other.trajectory.head is None
    assert first.thresholds == second.thresholds


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": nn.Linear(2, 2)}, TypeError, "model: expected a FaceModel, got Linear"),
        ({"natural": torch.rand(3, 3, 16, 16)}, ValueError, "natural: expected at least 4 images, got 3"),
        ({"adversarial": {"pgd": 2 * torch.ones(8, 3, 16, 16)}}, ValueError, "pgd: expected values in"),
        ({"labels": torch.arange(3)}, ValueError, r"labels: expected \(40,\) integers, got \(3,\)"),
        ({"layers": ()}, ValueError, "layers: expected names of submodules, got none"),
        ({"held": 1.0}, ValueError, "held: expected a share"),
        ({"reading": "x"}, ValueError, "reading: expected one of raw, relative, got 'x'"),
        ({"labels": 0 * LABELS}, ValueError, "representatives: expected two classes or more with the reading"),
    ],
)
def test_errors(change, error, message, model, natural, attacked):
    arguments = {"model": model, "natural": natural, "adversarial": attacked, "labels": LABELS, "config": CONFIG}
    with pytest.raises(error, match=message):
        fit(**{**arguments, **change})
    with pytest.raises(ValueError, match="pgd: expected images that an attack has changed, got the natural ones"):
        fit(model, natural, {"pgd": natural.clone()}, labels=LABELS, config=CONFIG)
    bare = fa.FaceModel(model.backbone, mean=(0,) * 3, std=(1,) * 3, input_size=(16, 16), name="bare", layers=("0",))
    with pytest.raises(ValueError, match="labels: expected the classes of the images, since 'bare' has no class head"):
        fit(bare.eval(), natural, attacked, config=CONFIG)


def test_relative_on_people_of_a_gallery():
    """An image is never read by a mean that it is part of, which would look natural to the detector and to it alone."""
    model = fa.load("synth-vgg")
    known = fa.data.render_faces([*range(32)] * 2, [20] * 32 + [22] * 32, seed=3)
    gallery, fresh = (fa.data.render_faces(range(32, 64), [frame] * 32, seed=3) for frame in (21, 20))
    attacked, other = (fa.attack("pgd", model, x.images, eps=8 / 255, steps=6).images for x in (known, fresh))
    config = FitConfig(kind="mlp", epochs=40)
    detector = fit(model, known.images, attacked, labels=known.identities, config=config)
    names = [str(k) for k in range(32, 64)]
    detector = fa.detection.enrol(detector, model, zip(names, gallery.images.split(1), strict=True))
    guard = fa.Guard(model=model, detector=detector)
    assert fa.detection.auc(guard(fresh.images).scores, guard(other).scores) > 0.9
    assert fa.detection.auc(guard(fresh.images, names).scores, guard(other, names).scores) > 0.9
