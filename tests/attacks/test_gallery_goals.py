"""The goal of a gallery: what its templates say, and attacks that move to them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbours import assert_alone
from small import LAYERED_SIZE
from small import layered_model as model
from torch.nn import functional as F

import fastadv as fa
from fastadv.attacks import Rows
from fastadv.attacks.feature_goals import GalleryClass
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.optimisation_catalog import df, knn_df
from fastadv.engine import Job, stream_jobs
from fastadv.surrogates import Ensemble, FeatureDropout, Surrogate


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
    centres = torch.rand(people, 1, 3, *LAYERED_SIZE, generator=generator)
    x = (centres + 0.15 * torch.randn(people, per, 3, *LAYERED_SIZE, generator=generator)).clamp(0, 1)
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
