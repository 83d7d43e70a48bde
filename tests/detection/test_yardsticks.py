"""Mahalanobis in closed form, LID of known dimensions, deep kNN by counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ShrunkCovariance

from fastadv.detection import DeepKnn, Examples, FitConfig, LocalDimension, Mahalanobis, auc, fit_network

LAYERS, CLASSES = ("conv", "block", "dense"), ("ada", "bob", "cyd", "dan")
NAMES = {"layers": LAYERS, "classes": CLASSES}


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_mahalanobis_in_closed_form(labelled, shrinkage):
    values, labels = labelled(90)
    batches = [([v[part] for v in values], labels[part]) for part in torch.arange(90).split(25)]
    made = Mahalanobis.fit(batches, shrinkage=shrinkage, **NAMES).by_layer(labelled(11, seed=8)[0])
    for i, (value, query) in enumerate(zip(values, labelled(11, seed=8)[0], strict=True)):
        x, q, y = value.double().numpy(), query.double().numpy(), labels.numpy()
        means = np.stack([x[y == k].mean(0) for k in range(4)])
        centred = x - means[y]
        shrunk = ShrunkCovariance(shrinkage=shrinkage, assume_centered=True).fit(centred).covariance_
        inverse = np.linalg.inv(shrunk)
        apart = q[:, None] - means[None]
        expected = np.einsum("nkc,cd,nkd->nk", apart, inverse, apart).min(1)
        np.testing.assert_allclose(made[:, i].numpy(), expected, rtol=1e-5)


def test_mahalanobis_does_not_care_for_linear_maps(labelled):
    values, labels = labelled(90)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(v.shape[1], v.shape[1], generator=generator) + 3 * torch.eye(v.shape[1]) for v in values]
    moved = [v @ m + 5 for v, m in zip(values, maps, strict=True)]
    query = labelled(9, seed=8)[0]
    first = Mahalanobis.fit([(values, labels)], shrinkage=0.0, **NAMES)
    second = Mahalanobis.fit([(moved, labels)], shrinkage=0.0, **NAMES)
    there = [v @ m + 5 for v, m in zip(query, maps, strict=True)]
    torch.testing.assert_close(second.by_layer(there), first.by_layer(query), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first.score(query), first.by_layer(query).sum(1))


def test_mahalanobis_is_chi_square_of_natural_images(labelled):
    values, labels = labelled(4000, widths=(6,))
    made = Mahalanobis.fit([(values, labels)], layers=("a",), classes=CLASSES, shrinkage=0.0)
    own = made.by_layer(values)[:, 0]
    assert float(own.mean()) < 6.0 * 1.02  # the nearest class is at most as far as the own one
    assert float(own.mean()) > 6.0 * 0.8


def test_the_derivative_of_mahalanobis(labelled):
    values, labels = labelled(60)
    made = Mahalanobis.fit([(values, labels)], **NAMES)
    query = [v.requires_grad_(True) for v in labelled(3, seed=8)[0]]
    gradients = torch.autograd.grad(made.score(query).sum(), query)
    for i in range(3):
        step = [1e-2 * g / g.norm() if i == j else torch.zeros_like(g) for j, g in enumerate(gradients)]
        with torch.no_grad():
            rise = (
                made.score([q + s for q, s in zip(query, step, strict=True)]).sum()
                - made.score([q - s for q, s in zip(query, step, strict=True)]).sum()
            )
        assert float(rise) == pytest.approx(2e-2 * float(gradients[i].norm()), rel=0.02)


def test_layers_joined_by_a_logistic_regression(labelled):
    values, labels = labelled(200)
    made = Mahalanobis.fit([(values, labels)], **NAMES)
    moved = [labelled(200, seed=5)[0][0], labelled(200, seed=5)[0][1] * 1.6, labelled(200, seed=5)[0][2]]
    embedded = torch.cat([made.by_layer(labelled(200, seed=4)[0]), made.by_layer(moved)])[:, :, None]
    given = Examples(embeddings=embedded, groups=torch.arange(400) // 200, attacks=("stretch",))
    network = fit_network(FitConfig(kind="linear", epochs=40, batch=64, lr=0.05), given).network
    with torch.no_grad():
        joined = network(embedded)
    plain = embedded[:, :, 0].sum(1)
    assert auc(joined[:200], joined[200:]) > auc(plain[:200], plain[200:]) > 0.6


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_lid_finds_the_dimension_of_a_manifold(dimension):
    generator = torch.Generator().manual_seed(dimension)
    flat = torch.rand(4000, dimension, generator=generator)
    axes = torch.linalg.qr(torch.randn(12, dimension, generator=generator)).Q.T
    points = flat @ axes * 3 + 1
    inside = (flat - 0.5).abs().amax(1) < 0.3  # away from the edges of the cube
    made = LocalDimension(reference=(points,), k=100).by_layer([points[inside]][:1])
    assert float(made.mean()) == pytest.approx(dimension, rel=0.08)


def test_lid_by_its_formula_and_without_the_image_itself():
    reference = torch.tensor([[0.0], [1.0], [-2.0], [4.0], [100.0]])
    made = LocalDimension(reference=(reference, 2 * reference), k=3)
    expected = -1 / np.mean([np.log(1 / 4), np.log(2 / 4), 0.0])
    query = torch.zeros(1, 1)  # the first reference is the query itself
    np.testing.assert_allclose(made.by_layer([query, query]).numpy(), [[expected, expected]], rtol=1e-6)
    np.testing.assert_allclose(made.score([query, query]).numpy(), [expected], rtol=1e-6)


def test_lid_of_equal_distances_is_finite():
    reference = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert LocalDimension(reference=(reference,), k=3).by_layer([torch.zeros(1, 1)]).tolist() == [[2.0**24]]


def test_deep_knn_by_counting(labelled):
    values, labels = labelled(80)
    held, truth = labelled(33, seed=6)
    query, predicted = labelled(10, seed=7)
    predicted = (predicted + (torch.arange(10) % 3 == 0)) % 4
    made = DeepKnn.fit(values, labels, held_values=held, held_labels=truth, k=9)

    def strangeness(asked, classes):
        total = np.zeros(len(classes), dtype=int)
        for value, q in zip(values, asked, strict=True):
            a, b = (v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1)[:, None] for v in (value, q))
            nearest = np.argsort(np.linalg.norm(b[:, None] - a[None], axis=2), axis=1)[:, :9]
            total += (labels.numpy()[nearest] != classes.numpy()[:, None]).sum(1)
        return total

    alphas, own = strangeness(held, truth), strangeness(query, predicted)
    np.testing.assert_array_equal(made.by_layer(query, predicted).sum(1).numpy(), own)
    np.testing.assert_array_equal(made.calibration.numpy(), np.sort(alphas))
    expected = (alphas[None] >= own[:, None]).mean(1)
    np.testing.assert_allclose(made.credibility(query, predicted).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(made.score(query, predicted).numpy(), 1 - expected, rtol=1e-6, atol=1e-7)


def test_deep_knn_of_natural_images_is_uniform(labelled):
    values, labels = labelled(200, widths=(2,))
    held, truth = labelled(400, seed=6, widths=(2,))
    query, right = labelled(400, seed=7, widths=(2,))
    made = DeepKnn.fit(values, labels, held_values=held, held_labels=truth, k=40, normalise=False)
    credibility = made.credibility(query, right)
    # A conformal p-value: at most a share p of images has one of p or less.
    for p in (0.05, 0.1, 0.3):
        assert float((credibility <= p).float().mean()) <= p + 3 * (p / 400) ** 0.5
    assert float(made.credibility(query, (right + 1) % 4).mean()) < 0.05


def test_mistakes_of_mahalanobis(labelled):
    values, labels = labelled(40)
    with pytest.raises(ValueError, match=r"shrinkage: expected a share in \[0, 1\], got 1\.5"):
        Mahalanobis.fit([(values, labels)], shrinkage=1.5, **NAMES)
    with pytest.raises(ValueError, match="classes: expected at least one image of each, got none of 4 of 4"):
        Mahalanobis.fit([], **NAMES)
    flat = [v.clone() for v in values]
    flat[1][:, 2] = 1.0
    with pytest.raises(
        ValueError, match="shrinkage: expected a larger one, since layer 'block' has a singular covariance, got 0"
    ):
        Mahalanobis.fit([(flat, labels)], shrinkage=0.0, **NAMES)
    made = Mahalanobis.fit([(flat, labels)], **NAMES)
    assert made.score(values).isfinite().all()
    with pytest.raises(ValueError, match="values: expected a sequence of 3 layers, got 2"):
        made.score(values[:2])
    with pytest.raises(ValueError, match=r"values\[1\]: expected 40 rows, like values\[0\], got 39"):
        made.score([values[0], values[1][1:], values[2]])
    with pytest.raises(ValueError, match=r"values\[0\]: expected shape \(any, 5\), got \(40, 7\)"):
        made.score([values[1], values[1], values[2]])


def test_mistakes_of_lid():
    x = torch.ones(5, 2)
    for reference, k, error, message in (
        (
            [x],
            2,
            TypeError,
            r"reference: expected a tuple of tensors \(M, C\), one per layer, got \[a Tensor of torch\.flo",
        ),
        ((), 2, TypeError, r"reference: expected a tuple of tensors \(M, C\), one per layer, got \(\)"),
        ((x, x[1:]), 2, ValueError, r"reference\[1\]: expected 5 rows, got 4"),
        ((x,), 1, ValueError, "k: expected 2 or more, and fewer than the 5 rows, got 1"),
        ((x,), 5, ValueError, "k: expected 2 or more, and fewer than the 5 rows, got 5"),
        ((x * torch.nan,), 2, ValueError, r"reference\[0\]: expected finite values, got NaN or infinity"),
    ):
        with pytest.raises(error, match=message):
            LocalDimension(reference=reference, k=k)
    with pytest.raises(ValueError, match="values: expected k=2 references or more at a distance above 0, got fewer"):
        LocalDimension(reference=(x,), k=2).by_layer([x])


def test_mistakes_of_deep_knn(labelled):
    values, labels = labelled(20)
    good = {"held_values": values, "held_labels": labels, "k": 5}
    for change, message in (
        ({"k": 21}, r"k: expected an integer in \[1, 20\], the size of the index, got 21"),
        ({"held_values": values[:2]}, "values: expected 3 layers, got 2"),
        ({"held_labels": labels[1:]}, r"labels: expected .*, got \(19,\)"),
        ({"held_values": [v[:0] for v in values], "held_labels": labels[:0]}, "held_values: expected one or more rows"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepKnn.fit(values, labels, **{**good, **change})
    made = DeepKnn.fit(values, labels, **good)
    with pytest.raises(ValueError, match=r"predicted: expected .*, got \(19,\)"):
        made.score(values, labels[1:])


@pytest.mark.gpu
def test_on_a_device(labelled):
    values, labels = labelled(80)
    query, _ = labelled(10, seed=7)
    there, moved = [v.cuda() for v in values], [v.cuda() for v in query]
    one, other = Mahalanobis.fit([(values, labels)], **NAMES), Mahalanobis.fit([(there, labels.cuda())], **NAMES)
    torch.testing.assert_close(other.score(moved).cpu(), one.score(query), rtol=1e-4, atol=1e-4)
    one, other = LocalDimension(reference=tuple(values)), LocalDimension(reference=tuple(there))
    torch.testing.assert_close(other.score(moved).cpu(), one.score(query), rtol=1e-4, atol=1e-4)
