"""The weights that come with the package: small, accurate on people they never saw, and open to attack."""

from __future__ import annotations

import warnings
from importlib.resources import files
from itertools import product

import numpy as np
import pytest
import torch

from fastadv import AttackWarning, Engine, Evade, Impersonate, attacks, run
from fastadv.data import SyntheticFaces
from fastadv.models import CheckpointError, fixed_batches, load, prepare, shipped_names
from fastadv.recognition import cosine_scores, evaluate

# among unseen people a pair can be over the threshold before it is attacked
pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")

# A seed that nothing was trained on.
UNSEEN = SyntheticFaces(identities=80, per_identity=5, seed=77)
PAIRS = UNSEEN.pairs(400, seed=1)
SAME = np.array([pair.same for pair in PAIRS])
FOLDS = np.array([pair.fold for pair in PAIRS])


class Kept:
    """The faces, drawn once, and their embeddings by each network."""

    def __init__(self) -> None:
        wanted = sorted({name for pair in PAIRS for name in (pair.first, pair.second)})
        with UNSEEN.stream(wanted) as faces:
            self.images = torch.stack([face.image for face in faces])
        place = {name: k for k, name in enumerate(wanted)}
        self.first = torch.tensor([place[pair.first] for pair in PAIRS])
        self.second = torch.tensor([place[pair.second] for pair in PAIRS])
        self.rows = {name: fixed_batches(prepare(load(name)), self.images, 32) for name in shipped_names()}

    def report(self, name):
        rows = self.rows[name]
        return evaluate(cosine_scores(rows[self.first].numpy(), rows[self.second].numpy()), SAME, FOLDS)


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
    first, second = (kept.images[k].flatten(1) for k in (kept.first, kept.second))
    scores = {"cosine": torch.cosine_similarity(first, second), "distance": -(first - second).norm(dim=1)}
    for name, values in scores.items():
        accuracy = evaluate(values.numpy(), SAME, FOLDS).accuracy
        assert accuracy is not None
        assert 0.5 < accuracy < 0.75, name


@pytest.mark.parametrize("name", shipped_names())
def test_unseen_people_are_verified(name, kept):
    report = kept.report(name)
    assert report.accuracy is not None
    assert report.accuracy > 0.95
    assert report.auc > 0.985


def test_the_class_head_recognises_its_people():
    """The last two images of each of the 500 classes were held out from the head's training."""
    model = load("synth-vgg")
    assert model.head is not None
    assert model.head.out_features == 500
    people = SyntheticFaces(identities=500, per_identity=20, seed=3)
    names = [f"s3-{k:06d}/0019" for k in range(0, 500, 10)]
    with people.stream(names) as faces:
        images = torch.stack([face.image for face in faces])
    with torch.no_grad():
        found = model.logits(images).argmax(1)
    assert (found == torch.arange(0, 500, 10)).float().mean() > 0.8
    assert all(load(name).head is None for name in shipped_names() if name != "synth-vgg")


def test_a_missing_file_is_said(monkeypatch, tmp_path):
    from fastadv.models import shipped

    monkeypatch.setattr(shipped, "files", lambda package: tmp_path)
    with pytest.raises(
        CheckpointError, match=r"weights: expected the package's file .*synth-vgg.safetensors, got no such file"
    ):
        load("synth-vgg")


@pytest.fixture(scope="module")
def attacked(kept):
    """Share of right decisions by surrogate (None: clean) and target, on 13 negative and 12 positive pairs.

    The first image of each is moved by FIM at 8/255, for the surrogate's threshold.
    """
    chosen = torch.arange(0, len(PAIRS), 16)
    same = SAME[chosen.numpy()]
    chosen = torch.cat([chosen[~same], chosen[same]])
    same, negative = SAME[chosen.numpy()], int((~same).sum())
    first, second = kept.images[kept.first[chosen]], kept.images[kept.second[chosen]]
    thresholds = {name: kept.report(name).eer_threshold for name in shipped_names()}
    moved = {}
    for name in shipped_names():
        model, limit = load(name), thresholds[name]
        towards = Impersonate(second[:negative], threshold=limit)
        away = Evade(references=second[negative:], threshold=limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)  # a pair may be decided wrongly before the attack
            parts = [
                run(attacks.fim(), goal, model, images, engine=Engine(batch=8)).images
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


def test_fim_turns_the_decisions_of_every_network(attacked):
    """Ten steps of 1/255, as on real faces (README): all but a few; the triplet network takes more steps."""
    for name in shipped_names():
        assert attacked[None, name] > 0.9
        assert attacked[name, name] < 0.3
    assert sum(attacked[name, name] for name in shipped_names()) / len(shipped_names()) < 0.1


def test_attacks_transfer_in_part(attacked):
    """On another network an attack is weaker than on its own and stronger than none, in the mean over surrogates."""
    for target in shipped_names():
        others = [attacked[surrogate, target] for surrogate in shipped_names() if surrogate != target]
        mean = sum(others) / len(others)
        assert attacked[target, target] < mean < attacked[None, target]
