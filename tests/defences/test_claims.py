"""Identities that images claim to show, under an attack that sees the detector."""

from dataclasses import replace

import pytest
import torch
from watched import HALF, LAYERS, faces, make_detector, make_model

import fastadv as fa
from fastadv.attacks import ClassifyAs, Impersonate, bim
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory

pytestmark = pytest.mark.filterwarnings("ignore:.*reached the goal before:fastadv.engine.AttackWarning")


@pytest.fixture(scope="module")
def claiming():
    """A model under a detector of the reading ``relative``, with logits for the claims "c" and "a"."""
    model = make_model()
    representatives = make_detector(model, "mlp").trajectory.representatives
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = Network(Architecture(kind="mlp", layers=2, width=5, hidden=8, dropout=0.0))
    trajectory = Trajectory(representatives=representatives, reading="relative", head=tuple("abcd"))
    detector = Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))
    return model, detector, WatchedModel(model, detector, claims=(2, 0))


@pytest.mark.parametrize("output", ["embedding", "logits"])
def test_each_claim_has_the_logit_of_an_image_that_makes_it(claiming, output):
    model, detector, watched = claiming
    x = faces(5, 1)
    with torch.no_grad():
        made = watched(x) if output == "embedding" else watched.logits(x)
        bare = model(x) if output == "embedding" else model.logits(x)
        tapped = LayerTap(model=model)(x)
        claims = [detector.score(tapped.values, torch.full((5,), place)) for place in (2, 0)]
    torch.testing.assert_close(made, torch.cat([bare, torch.stack(claims, 1)], 1), rtol=1e-5, atol=1e-5)
    assert (claims[0] != claims[1]).all()


@pytest.mark.parametrize("by_shortfall", [False, True])
@pytest.mark.parametrize("kind", [Impersonate, ClassifyAs])
def test_an_image_is_judged_and_moved_by_the_logit_of_its_own_claim(claiming, kind, by_shortfall):
    model, detector, watched = claiming
    x, claimed = faces(4, 2), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        targets = torch.nn.functional.pad(model(faces(4, 3)), (0, 2))  # with a 0 for each further column
    bare = Impersonate(targets, threshold=-1.0) if kind is Impersonate else ClassifyAs(torch.tensor([3, 0, 1, 2]))
    more = {"weight": 0.7, "by_shortfall": by_shortfall, "columns": 2}
    line = float(watched(x)[:, -2:].detach().median())
    goal = EvadeDetector(goal=bare, threshold=line, claimed=claimed, **more)
    assert goal.further_columns == 2
    assert goal.row_count == 4
    found = fa.run(bim(steps=3), goal, watched, x)
    with torch.no_grad():
        tapped = LayerTap(model=model)(found.images)
        scores = detector.score(tapped.values, torch.tensor([2, 0])[claimed])
        logits = model.logits(found.images)
    passed = scores < line
    reached = torch.ones(4, dtype=torch.bool) if kind is Impersonate else logits.argmax(1) == bare.labels
    assert torch.equal(found.success, reached & passed)
    # one image with the claim as the only one: the same images
    for k, place in enumerate((2, 0, 0, 2)):
        alone = WatchedModel(model, detector, claims=(place,))
        single = bare.row(k)
        if kind is Impersonate:
            single = Impersonate(single.targets[:, :-1], threshold=-1.0)
        own = EvadeDetector(goal=single, threshold=line, claimed=torch.tensor([0]), **{**more, "columns": 1})
        image = fa.run(bim(steps=3), own, alone, x[k : k + 1]).images[0]
        torch.testing.assert_close(image, found.images[k], rtol=0, atol=1.5 / 255)


def test_there_may_be_more_claims_than_classes_of_the_head(claiming):
    model, detector, _ = claiming
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        two = torch.nn.Linear(10, 2)
    model = fa.FaceModel(
        model.backbone, input_size=(16, 16), mean=HALF, std=HALF, name="tiny", layers=LAYERS, head=two
    ).eval()
    detector = replace(detector, trajectory=replace(detector.trajectory, head=None))
    watched = WatchedModel(model, detector, claims=(2, 0, 1))
    goal = EvadeDetector(goal=ClassifyAs(torch.tensor([1])), claimed=torch.tensor([2]), columns=3)
    assert len(fa.run(bim(steps=2), goal, watched, faces(1)).images) == 1
    goal = EvadeDetector(goal=ClassifyAs(torch.tensor([2])), claimed=torch.tensor([2]), columns=3)
    with pytest.raises(ValueError, match="labels: expected numbers below the model's 2 classes, got 2"):
        fa.run(bim(steps=2), goal, watched, faces(1))


def test_claims_that_do_not_fit_are_refused(claiming):
    model, detector, _ = claiming
    raw = make_detector(model, "mlp")
    goal = ClassifyAs(torch.tensor([1]))
    with pytest.raises(ValueError, match="claims: expected none for a detector of the reading 'raw', got 1"):
        WatchedModel(model, raw, claims=(0,))
    for wrong in ((4,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="claims: expected different places below 4, the detector's classes, got"):
            WatchedModel(model, detector, claims=wrong)
    with pytest.raises(ValueError, match="columns: expected 1 without claimed, got 2"):
        EvadeDetector(goal=goal, columns=2)
    with pytest.raises(ValueError, match="columns: expected at least 1, got 0"):
        EvadeDetector(goal=goal, claimed=torch.tensor([0]), columns=0)
    with pytest.raises(ValueError, match="claimed: expected places below 2, got 2"):
        EvadeDetector(goal=goal, claimed=torch.tensor([2]), columns=2)
