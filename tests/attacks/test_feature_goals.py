"""The goals of the deep-feature attacks: features of a layer, and what the templates of a gallery say."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small import LAYERED_SIZE, grey_images
from small import layered_model as model
from torch import nn

import fastadv as fa
from fastadv.attacks import Evade, Linf, Rows
from fastadv.attacks.feature_goals import GalleryClass, MatchFeatures
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.optimisation_catalog import df, knn_df
from fastadv.models import prepare
from fastadv.models.outputs import at_layer, output_of
from fastadv.surrogates import Ensemble, FeatureDropout, Surrogate

faces = partial(grey_images, size=LAYERED_SIZE)


# -- outputs by name ------------------------------------------------------------------------------------------------


def test_a_layers_output_is_its_vector_in_any_layout_and_nothing_after_it_runs():
    net, x = model(), faces(4)
    ready = prepare(net)
    ready.backbone.ran = 0  # the preparation has traced it
    with torch.no_grad():
        wanted = net.backbone.body(net.backbone.stem((x - 0.5) / 0.5)).flatten(1)
        got = output_of(net, at_layer("body"), x)
        last = output_of(ready, at_layer("body"), x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)
    assert net.backbone.ran == ready.backbone.ran == 0
    assert not net.backbone.body._forward_hooks
    assert torch.equal(output_of(net, "embedding", x), net(x))


def test_a_layer_of_a_bf16_model_is_float32():
    ready = prepare(model(), precision="bf16")
    assert output_of(ready, at_layer("body"), faces(2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (at_layer("nose"), "layer: expected a submodule of the backbone of 'net', got 'nose'"),
        (at_layer(""), "layer: expected a submodule of the backbone of 'net', got ''"),
        (
            at_layer("unused"),
            "layer: expected one that runs in the forward pass of 'net', got 'unused', which does not",
        ),
        (at_layer("pair"), r"layer: expected a tensor \(N, \.\.\.\) from 'pair' of 'net', got tuple"),
        ("nose", "kind: expected 'embedding', 'logits' or at_layer"),
        ("logits", "head: expected a class head for logits, got 'net' without one"),
    ],
)
def test_an_output_that_there_is_not(kind, text):
    with pytest.raises(ValueError, match=text):
        output_of(model(), kind, faces(2))


# -- MatchFeatures --------------------------------------------------------------------------------------------------


def test_its_loss_and_score_are_the_squared_distance_and_the_distance():
    torch.manual_seed(0)
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    goal, rows = MatchFeatures(b, threshold=3.0), Rows(reference=b)
    distance = (a.double() - b.double()).norm(dim=1)
    torch.testing.assert_close(goal.loss(a, rows).double(), -(distance**2))
    torch.testing.assert_close(goal.score(a, rows).double(), distance)
    torch.testing.assert_close(goal.shortfall(a, rows).double(), distance - 3, rtol=0, atol=1e-6)
    assert torch.equal(goal.achieved(a, rows), distance <= 3)
    assert torch.equal(goal.achieved(a, rows, 0.5), distance <= 2.5)
    assert goal.rivals(a, rows, 3).shape == (5, 3)
    assert torch.isinf(goal.rivals(a, rows, 3)[:, 1:]).all()
    # at the guide itself the gradient is 0, not NaN
    leaf = b.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((goal.loss(leaf, rows) + goal.score(leaf, rows)).sum(), leaf)
    assert not gradient.any()


class Scaled(nn.Module):
    """phi(x) = w * x, one number a pixel: its best match in a box can be written down."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(0.5, 2.0, 3 * 6 * 5).view(3, 6, 5))

    def forward(self, x):
        return self.weights * x


def test_the_best_match_in_the_box_is_the_guide_cut_with_it():
    """min ||w (x' - guide)|| over |x' - x| <= eps is clip(guide)."""
    backbone = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(90, 4))
    net = fa.FaceModel(backbone, input_size=(6, 5), mean=(0,) * 3, std=(1,) * 3, name="scaled").eval()
    x, guides, eps = faces(5, size=(6, 5)), faces(5, seed=2, size=(6, 5)), 20 / 255
    goal = MatchFeatures(guides, layer="0")
    made = fa.run(fa.Recipe(LBFGSB(budget=Linf(eps), tolerance=1e-9)), goal, net, x)
    best = torch.maximum(torch.minimum(guides, x + eps), x - eps)
    assert float((made.images - best).abs().max()) <= 1.01 / 255  # to the grey level
    with torch.no_grad():
        distance = ((made.images - guides) * backbone[0].weights).flatten(1).norm(dim=1)
    torch.testing.assert_close(made.score_after, distance)
    assert not made.success.any()


def test_a_guide_inside_the_ball_is_matched():
    net, x = model(), faces(3)
    guides = (x + torch.randint(-4, 5, x.shape, generator=torch.Generator().manual_seed(3)) / 255).clamp(0, 1)
    with torch.no_grad():
        before = output_of(net, at_layer("body"), x) - output_of(net, at_layer("body"), guides)
    goal = MatchFeatures(guides, layer="body", threshold=float(before.norm(dim=1).min()) / 5)
    attack = LBFGSB(budget=Linf(8 / 255), stop_at_success=True, margin=goal.threshold / 4)
    made = fa.run(fa.Recipe(attack), goal, net, x, engine=fa.Engine(success_float=True))
    assert made.success_float.all()


def test_guides_as_features_do_what_guides_as_images_do():
    net, x, guides = model(), faces(4), faces(4, seed=2)
    with torch.no_grad():
        features = output_of(net, at_layer("stem"), guides)
    attack = df(eps=8 / 255, steps=5)
    a = fa.run(attack, MatchFeatures(guides, layer="stem"), net, x)
    b = fa.run(attack, MatchFeatures(features, layer="stem"), net, x)
    torch.testing.assert_close(a.score_after, b.score_after, rtol=1e-4, atol=1e-4)
    assert bool((a.score_after < 0.95 * a.score_before).all())


# -- user errors ----------------------------------------------------------------------------------------------------

TEMPLATES, CLASSES, LABELS = torch.eye(4), torch.arange(4), torch.tensor([0, 1])
GALLERY = Gallery(templates=TEMPLATES, classes=CLASSES)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MatchFeatures(None), "guides: expected images"),
        (lambda: MatchFeatures(torch.zeros(3)), r"guides: expected float images \(N, 3, H, W\) or embeddings"),
        (lambda: MatchFeatures(torch.ones(2, 3), layer=""), "layer: expected the name of a submodule"),
        (lambda: MatchFeatures(torch.ones(2, 3), layer=3), "layer: expected the name of a submodule"),
        (lambda: MatchFeatures(torch.ones(2, 3), threshold=-1.0), "threshold: expected a distance of at least 0"),
        (lambda: Gallery(templates=torch.zeros(4), classes=CLASSES), r"templates: expected float .*got \(4,\)"),
        (lambda: Gallery(templates=[1], classes=CLASSES), "templates: expected float embeddings.* got list"),
        (
            lambda: Gallery(templates=TEMPLATES / 0, classes=CLASSES),
            "templates: expected finite embeddings .* at row 0",
        ),
        (lambda: Gallery(templates=TEMPLATES, classes=CLASSES.float()), r"classes: expected integers \(N,\), got"),
        (lambda: Gallery(templates=TEMPLATES, classes=CLASSES[:3]), "one entry for each of 4 templates, got 3"),
        (
            lambda: Gallery(templates=TEMPLATES, classes=CLASSES * 0),
            "classes: expected two different ones or more, .* got 1",
        ),
        (lambda: GalleryClass(gallery=TEMPLATES, labels=LABELS), "gallery: expected a Gallery, got Tensor"),
        (lambda: GalleryClass(gallery=GALLERY, labels=LABELS.float()), r"labels: expected integers \(N,\), got"),
        (lambda: GalleryClass(gallery=GALLERY, labels=LABELS + 3), "labels: expected classes of the gallery, got 4"),
        (lambda: GalleryClass(gallery=GALLERY, labels=LABELS, k=5), "k: expected an integer from 1 to the gallery's 4"),
        (lambda: GalleryClass(gallery=GALLERY, labels=LABELS, k=0), "k: expected an integer from 1 to the gallery's 4"),
        (
            lambda: GalleryClass(gallery=GALLERY, labels=LABELS, guides=torch.ones(3, 4)),
            "guides: expected one row for each of 2 labels, got 3",
        ),
        (
            lambda: GalleryClass(gallery=GALLERY, labels=LABELS, guides=torch.zeros(4)),
            "guides: expected float images",
        ),
        (
            lambda: fa.run(knn_df(), GalleryClass(gallery=GALLERY, labels=LABELS), model(), faces(2)),
            "gallery: expected templates of 12 numbers like the model's embeddings, got 4",
        ),
        (lambda: fa.run(df(), MatchFeatures(faces(1), layer="nose"), model(), faces(1)), "got 'nose'"),
        (
            lambda: fa.run(df(), MatchFeatures(torch.zeros(1, 5), layer="body"), model(), faces(1)),
            "goal: expected embeddings of 96 numbers like the model's, got 5",
        ),
        (
            lambda: fa.run(
                replace(df(), surrogate=Surrogate(ensemble=Ensemble(others=(model(1),)))),
                MatchFeatures(faces(1), layer="body"),
                model(),
                faces(1),
            ),
            "goal: expected one on embeddings, which every model of an ensemble has, got one on 'layer",
        ),
        (
            lambda: fa.run(
                replace(df(), surrogate=Surrogate(dropout=FeatureDropout(rate=0.1))),
                MatchFeatures(faces(1), layer="body"),
                model(),
                faces(1),
            ),
            "goal: expected one on embeddings or logits where convolutions are masked, got one on 'layer",
        ),
    ],
)
def test_a_users_error_is_one_clear_sentence(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_gallery_goal_is_a_goal_like_the_others():
    goal = GalleryClass(gallery=GALLERY, labels=LABELS, guides=torch.ones(2, 4))
    row = goal.row(1)
    assert row.gallery is goal.gallery
    assert (row.labels.tolist(), tuple(row.guides.shape)) == ([1], (1, 4))
    assert (goal.output, goal.own_reference, goal.references is goal.guides) == ("embedding", False, True)
    assert MatchFeatures(torch.ones(2, 4)).output == Evade(threshold=0.1).output == "embedding"
