"""The goals of the deep-feature attacks: features of a layer, and what the templates of a gallery say."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbours import assert_alone
from small import grey_images
from torch import nn
from torch.nn import functional as F

import fastadv as fa
from fastadv.attacks import Evade, Linf, Rows
from fastadv.attacks.feature_goals import GalleryClass, MatchFeatures
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.optimisation_catalog import df, knn_df
from fastadv.engine import Job, stream_jobs
from fastadv.models import prepare
from fastadv.models.outputs import at_layer, output_of
from fastadv.surrogates import Ensemble, FeatureDropout, Surrogate

SIZE = (16, 16)


faces = partial(grey_images, size=SIZE)


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
        self.body = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.unused = nn.Linear(3, 3)
        self.pair = nn.LSTM(4, 4)
        self.end = nn.Linear(96, 12)
        self.ran = 0

    def forward(self, x):
        y = self.body(self.stem(x))
        self.ran += 1
        self.pair(y[:, :4, 0])
        return self.end(y.flatten(1))


def model(seed=0):
    return fa.FaceModel(
        Net(seed), input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="net", layers=("stem", "body")
    ).eval()


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


# -- galleries ------------------------------------------------------------------------------------------------------


def test_templates_are_the_means_of_the_classes():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(40, 6), torch.arange(40) % 4 * 3 + 2
    gallery = Gallery.from_embeddings(embeddings, labels)
    assert gallery.classes.tolist() == [2, 5, 8, 11]
    for c, template in zip(gallery.classes, gallery.templates, strict=True):
        torch.testing.assert_close(template, embeddings[labels == c].mean(0))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 12), kinds=st.integers(2, 5), k=st.integers(1, 12))
def test_the_vote_is_that_of_a_sort_and_a_count(seed, count, kinds, k):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(kinds, (count,), generator=generator)
    classes[:2] = torch.tensor([0, 1])
    gallery = Gallery(templates=torch.randn(count, 5, generator=generator), classes=classes)
    queries = torch.randn(6, 5, generator=generator)
    k = min(k, count)
    distances = gallery.distances(queries)
    torch.testing.assert_close(distances, torch.cdist(queries.double(), gallery.templates.double()).float())
    for row, said in zip(distances, gallery.vote(distances, k).tolist(), strict=True):
        named = classes[row.argsort()[:k]].tolist()
        # max keeps the first of equal counts, and the first is the nearest
        assert said == max(named, key=named.count)


def gallery_and_rows(seed=0, count=9, kinds=4, n=7):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % kinds
    gallery = Gallery(templates=F.normalize(torch.randn(count, 5, generator=generator), dim=1), classes=classes)
    outputs = F.normalize(torch.randn(n, 5, generator=generator), dim=1)
    labels = torch.arange(n) % kinds
    return gallery, outputs, labels


@pytest.mark.parametrize("any_other", [False, True])
def test_with_one_neighbour_it_is_achieved_where_the_margin_is_positive(any_other):
    gallery, outputs, labels = gallery_and_rows()
    goal, rows = GalleryClass(gallery=gallery, labels=labels, any_other=any_other), Rows(label=labels)
    distances = torch.cdist(outputs.double(), gallery.templates.double())
    wanted = (gallery.classes == labels[:, None]) ^ any_other
    nearest = distances.masked_fill(~wanted, torch.inf).amin(1)
    margin = distances.masked_fill(wanted, torch.inf).amin(1) - nearest
    torch.testing.assert_close(goal.score(outputs, rows).double(), margin, rtol=0, atol=1e-6)
    torch.testing.assert_close(goal.loss(outputs, rows).double(), -(nearest**2), rtol=0, atol=1e-5)
    assert torch.equal(goal.shortfall(outputs, rows), -goal.score(outputs, rows))
    assert goal.rivals(outputs, rows, 2).isinf().any(1).all()
    for spare in (0.0, 0.2):
        assert torch.equal(goal.achieved(outputs, rows, spare), margin > spare)


def test_with_more_neighbours_the_majority_decides():
    gallery = Gallery(templates=torch.tensor([[1.0], [2.0], [2.5], [9.0]]), classes=torch.tensor([7, 3, 3, 5]))
    query = torch.tensor([[0.0]])

    def says(k, label, margin=0.0, any_other=False):
        label = torch.tensor([label])
        goal = GalleryClass(gallery=gallery, labels=label, k=k, any_other=any_other)
        return bool(goal.achieved(query, Rows(label=label), margin))

    assert says(1, 7)
    assert says(2, 7)  # one each: the nearest
    assert says(3, 3)
    assert not says(3, 7)
    assert says(3, 7, any_other=True)
    assert says(1, 7, margin=0.9)
    assert not says(1, 7, margin=1.1)


def test_with_guides_the_loss_is_the_distance_to_them_and_the_verdict_the_gallerys():
    gallery, outputs, labels = gallery_and_rows()
    guides = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(9)), dim=1)
    goal = GalleryClass(gallery=gallery, labels=labels, guides=guides)
    free = GalleryClass(gallery=gallery, labels=labels)
    rows = Rows(reference=guides, label=labels)
    torch.testing.assert_close(goal.loss(outputs, rows), -(outputs - guides).square().sum(1))
    assert torch.equal(goal.achieved(outputs, rows), free.achieved(outputs, Rows(label=labels)))


def test_without_guides_it_moves_to_the_template_that_is_nearest_now():
    """Of the other classes' templates the one nearest to the trial, not to the first image; of equal ones the first."""
    gallery = Gallery(
        templates=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]]), classes=torch.tensor([4, 9, 2, 7])
    )
    label = torch.tensor([4])
    goal, rows = GalleryClass(gallery=gallery, labels=label, any_other=True), Rows(label=label)

    def pull(x, y):
        outputs = torch.tensor([[x, y]], requires_grad=True)
        (gradient,) = torch.autograd.grad(goal.loss(outputs, rows).sum(), outputs)
        return gradient[0].tolist()

    assert pull(0.5, 0.25) == [-1.0, 1.5]  # 2 (template - output): to class 9
    assert pull(0.5, -0.25) == [-1.0, -1.5]  # to class 2
    assert pull(-0.75, 0.25) == [-0.5, -0.5]  # to class 7
    assert pull(0.5, 0.0) == [-1.0, 2.0]  # 9 and 2 are as near: the first
    assert pull(0.0, 1.0) == [0.0, 0.0]  # there


def test_an_untargeted_attack_ends_in_a_class_of_its_own_choice():
    """From one image the targeted and the untargeted attack make two, and the untargeted one is nearer."""
    net = model()
    x, own, gallery = identities(net)
    with torch.no_grad():
        distances = torch.cdist(net(x), gallery.templates)
    far = distances.masked_fill(gallery.classes == own[:, None], -1).argmax(1)
    targeted = fa.run(knn_df(eps=0.4), GalleryClass(gallery=gallery, labels=gallery.classes[far]), net, x)
    free = fa.run(knn_df(eps=0.4), GalleryClass(gallery=gallery, labels=own, any_other=True), net, x)
    assert free.success.all()
    assert not torch.equal(free.images, targeted.images)
    assert float(free.l2.mean()) < float(targeted.l2.mean())


def test_an_ensemble_needs_guides_that_its_networks_can_embed():
    net = model()
    x, own, gallery = identities(net)
    recipe = replace(df(eps=0.1, steps=2), surrogate=Surrogate(ensemble=Ensemble(others=(model(1),))))
    bare = GalleryClass(gallery=gallery, labels=own, any_other=True)
    with pytest.raises(ValueError, match="guides: expected images .* with an ensemble, .* got None"):
        fa.run(recipe, bare, net, x)
    fa.run(recipe, replace(bare, guides=x.roll(1, 0)), net, x)


def identities(net, people=5, per=4):
    """Faces of people: noise around a pattern each; templates from all but the first face."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.rand(people, 1, 3, *SIZE, generator=generator)
    x = (centres + 0.15 * torch.randn(people, per, 3, *SIZE, generator=generator)).clamp(0, 1)
    x = torch.round(x * 255) / 255
    with torch.no_grad():
        gallery = Gallery.from_embeddings(
            net(x[:, 1:].flatten(0, 1)), torch.arange(people).repeat_interleave(per - 1) + 10
        )
    return x[:, 0], torch.arange(people) + 10, gallery


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("any_other", [True, False])
def test_the_knn_guided_attack_stops_when_the_templates_say_so(guided, any_other):
    net = model()
    x, own, gallery = identities(net)
    guides = x.roll(1, 0) if guided else None
    goal = GalleryClass(gallery=gallery, labels=own if any_other else own.roll(1), any_other=any_other, guides=guides)
    made = fa.run(knn_df(eps=0.4, margin=0.02), goal, net, x)
    assert made.success.all()
    with torch.no_grad():
        nearest = gallery.classes[torch.cdist(net(made.images), gallery.templates).argmin(1)]
    assert torch.equal(nearest != own if any_other else nearest == own.roll(1), torch.ones(5, dtype=torch.bool))
    full = fa.run(df(eps=0.4, steps=20), goal, net, x)
    assert int(made.ticks.sum()) < 0.7 * int(full.ticks.sum())
    if any_other:
        targeted = GalleryClass(gallery=gallery, labels=own.roll(1), guides=guides)
        assert int(made.ticks.sum()) <= int(fa.run(knn_df(eps=0.4, margin=0.02), targeted, net, x).ticks.sum())


def test_a_gallery_result_does_not_depend_on_slots_order_or_neighbours():
    net = model()
    x, own, gallery = identities(net, people=9)
    goal = GalleryClass(gallery=gallery, labels=own.roll(2), guides=x.roll(2, 0), k=2)
    assert_alone(knn_df(eps=0.4, margin=0.02), goal, net, x, varied=False)


def test_goals_of_two_galleries_or_with_and_without_guides_do_not_share_a_run():
    net = model()
    x, own, gallery = identities(net)
    one = GalleryClass(gallery=gallery, labels=own, any_other=True)
    others = (
        GalleryClass(gallery=gallery.to("cpu"), labels=own, any_other=True),
        GalleryClass(gallery=gallery, labels=own, any_other=True, guides=x.roll(1, 0)),
        GalleryClass(gallery=gallery, labels=own, any_other=True, k=2),
    )
    for other in others:
        for a, b in ((one, other), (other, one)):
            mixed = [Job(name=str(i), id=i, image=x[i], goal=g.row(i)) for i, g in enumerate((a, b))]
            with pytest.raises(
                ValueError,
                match=r"goal of '1': expected one like the first, GalleryClass\(gallery=Gallery\(templates=a Tenso",
            ):
                list(stream_jobs(knn_df(), mixed, net))


def test_a_stochastic_surrogate_embeds_the_guides_with_its_own_masks():
    net = model()
    x, own, gallery = identities(net)
    # masks differ from one evaluation to the next: the first step must change more than they do
    attack = df(eps=0.1, steps=3, first_step=0.1)
    recipe = replace(attack, surrogate=Surrogate(dropout=FeatureDropout(rate=0.05)))
    goal = GalleryClass(gallery=gallery, labels=own.roll(1), guides=x.roll(1, 0))
    made = fa.run(recipe, goal, net, x)
    assert bool((made.score_after > made.score_before).all())


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
