"""The weights that come with the package: small, accurate on people they never saw, and open to attack."""

from __future__ import annotations

from importlib.resources import files
from itertools import product

import numpy as np
import pytest
import torch

from fastadv import Engine, Evade, Impersonate, attacks, run
from fastadv.data import SyntheticFaces
from fastadv.models import CheckpointError, load, shipped_names
from fastadv.recognition import cosine_scores, euclidean_scores, evaluate
from fastadv.training import verify_pairs

# among unseen people a pair can be over the threshold before it is attacked
pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")

# A seed that nothing was trained on.
UNSEEN = SyntheticFaces(identities=80, per_identity=5, seed=77)
PAIRS = UNSEEN.pairs(400, seed=1)
SAME = np.array([pair.same for pair in PAIRS])
FOLDS = np.array([pair.fold for pair in PAIRS])


class Kept:
    """The faces, drawn once for all the tests."""

    def __init__(self) -> None:
        with UNSEEN.stream() as faces:
            self.images = {face.name: face.image for face in faces}

    def stack(self, names):
        return torch.stack([self.images[name] for name in names])


@pytest.fixture(scope="module")
def kept():
    return Kept()


def test_there_are_four_architectures():
    assert shipped_names() == ("synth-mobile", "synth-resnet", "synth-vgg", "synth-shuffle")
    kinds = {type(load(name).backbone) for name in shipped_names()}
    assert len(kinds) == 4


@pytest.mark.parametrize("name", shipped_names())
def test_files_are_small_and_computed_with_in_float32(name):
    size = len((files("fastadv") / "weights" / f"{name}.safetensors").read_bytes())
    assert size < 2_000_000
    model = load(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())


def test_a_seed_still_gives_random_weights():
    shipped, random = load("synth-vgg"), load("synth-vgg", random_weights_seed=0)
    assert random.head is None
    assert not torch.equal(next(shipped.backbone.parameters()), next(random.backbone.parameters()))


def test_pixels_do_not_verify(kept):
    first = kept.stack(pair.first for pair in PAIRS).flatten(1).numpy()
    second = kept.stack(pair.second for pair in PAIRS).flatten(1).numpy()
    scores = {
        "cosine": cosine_scores(first, second),
        "euclidean": euclidean_scores(first, second),
        "distance": -np.linalg.norm(first - second, axis=1),
    }
    for name, values in scores.items():
        accuracy = evaluate(values, SAME, FOLDS).accuracy
        assert accuracy is not None
        assert 0.5 < accuracy < 0.75, name


@pytest.mark.parametrize("name", shipped_names())
def test_unseen_people_are_verified(name):
    report = verify_pairs(load(name), UNSEEN, PAIRS)
    assert report.accuracy is not None
    assert report.accuracy > 0.95
    assert report.auc > 0.985


def test_the_class_head_recognises_its_people():
    """The last two images of each of the 500 classes were held out from the head's training."""
    model = load("synth-vgg")
    assert model.head is not None
    assert model.head.out_features == 500
    people = SyntheticFaces(identities=500, per_identity=20, seed=3)
    names = [f"s3-{k:06d}/0019" for k in range(0, 500, 5)]
    with people.stream(names) as faces:
        images = torch.stack([face.image for face in faces])
    with torch.no_grad():
        found = model.logits(images).argmax(1)
    assert (found == torch.arange(0, 500, 5)).float().mean() > 0.8
    assert all(load(name).head is None for name in shipped_names() if name != "synth-vgg")


def test_a_missing_file_is_said(monkeypatch, tmp_path):
    from fastadv.models import shipped

    monkeypatch.setattr(shipped, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match=r"synth-vgg.safetensors is missing; the installation of fastadv is not"):
        load("synth-vgg")


@pytest.fixture(scope="module")
def attacked(kept):
    """For each network as surrogate: 24 negative and 24 positive pairs, the first image moved by FIM at 8/255."""
    chosen = [pair for k, pair in enumerate(PAIRS) if k % 8 == 0][:48]
    chosen.sort(key=lambda pair: pair.same)
    first, second = kept.stack(p.first for p in chosen), kept.stack(p.second for p in chosen)
    same = np.array([p.same for p in chosen])
    thresholds = {name: verify_pairs(load(name), UNSEEN, PAIRS).eer_threshold for name in shipped_names()}
    moved = {}
    for name in shipped_names():
        model, limit = load(name), thresholds[name]
        engine, negative = Engine(batch=8), int((~same).sum())
        towards = Impersonate(second[:negative], threshold=limit)
        away = Evade(references=second[negative:], threshold=limit)
        parts = [
            run(attacks.fim(), goal, model, images, engine=engine).images
            for goal, images in ((towards, first[:negative]), (away, first[negative:]))
        ]
        moved[name] = torch.cat(parts)
    right = {}
    for surrogate, target in product([None, *shipped_names()], shipped_names()):
        model = load(target)
        with torch.no_grad():
            scores = (model(first if surrogate is None else moved[surrogate]) * model(second)).sum(1).numpy()
        right[surrogate, target] = float(((scores >= thresholds[target]) == same).mean())
    return right


@pytest.mark.parametrize("name", shipped_names())
def test_fim_breaks_every_network(attacked, name):
    assert attacked[None, name] > 0.9
    assert attacked[name, name] < 0.05


def test_attacks_transfer_in_part(attacked):
    """On another network an attack is weaker than on its own and stronger than none, in the mean over surrogates."""
    for target in shipped_names():
        others = [attacked[surrogate, target] for surrogate in shipped_names() if surrogate != target]
        mean = sum(others) / len(others)
        assert attacked[target, target] < mean < attacked[None, target]
