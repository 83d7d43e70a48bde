"""A model that joins the embeddings of an image and of its mirror image."""

import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv.models import load, mirrored
from fastadv.surrogates import FeatureDropout, StepKey

FACES = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def test_a_face_and_its_mirror_image_have_the_halves_exchanged():
    model = mirrored(load("synth-mobile"))
    features, other = model.features(FACES), model.features(FACES.flip(3))
    half = features.shape[1] // 2
    assert torch.equal(other, torch.cat((features[:, half:], features[:, :half]), 1))
    torch.testing.assert_close(model(FACES).norm(dim=1), torch.ones(3))


def test_head_and_taps_are_left_out_and_the_model_stays_as_it_is():
    bare = load("synth-resnet")
    bare.head = nn.Linear(bare.embedding_size, 4)
    made = mirrored(bare)
    assert (made.head, made.layers, made.training) == (None, (), False)
    assert bare.layers
    assert bare.head is not None
    assert made.name == bare.name


def test_one_subnetwork_embeds_both_images():
    """The masks of an evaluation are those of its key: of a symmetric image the halves are equal."""
    face = (FACES + FACES.flip(3)) / 2
    key = StepKey(seed=1, ids=torch.arange(3), ticks=torch.zeros(3, dtype=torch.int64))
    features = FeatureDropout(rate=0.1).bind(mirrored(load("synth-resnet"))).features(face, key)
    half = features.shape[1] // 2
    torch.testing.assert_close(features[:, :half], features[:, half:], rtol=1e-4, atol=1e-5)


def test_it_is_attacked_as_any_other():
    model = mirrored(load("synth-mobile"))
    faces = fa.data.render_faces([0, 1, 2], [0, 0, 0], seed=7).images
    targets = faces.roll(1, 0)
    made = fa.attack("fim", model, faces, goal=fa.Impersonate(targets, threshold=0.6), eps=16 / 255, steps=20)
    with torch.no_grad():
        reached = (model(made.images) * model(targets)).sum(1) >= 0.6
    assert bool(reached.any())
    assert torch.equal(made.success, reached)


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model: expected a FaceModel, got Linear"):
        mirrored(nn.Linear(2, 2))
