"""Synthetic faces: a picture is a function of its key, on the 8-bit grid, with landmarks where the parts are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.data import Face, FaceSource, PairError, SyntheticFaces, face_id, render_faces, to_tensor, to_uint8
from fastadv.data.alignment import similarity, template


@pytest.fixture(scope="module")
def many():
    people = [k // 8 for k in range(160)]
    return render_faces(people, [k % 8 for k in range(160)], seed=11)


def test_shapes_and_grid(many):
    assert many.images.shape == (160, 3, 112, 112)
    assert many.images.dtype == torch.float32
    assert many.landmarks.shape == (160, 5, 2)
    assert many.identities.tolist() == [k // 8 for k in range(160)]
    assert many.images.min() >= 0
    assert many.images.max() <= 1
    assert torch.equal(torch.stack([to_tensor(to_uint8(image)) for image in many.images[:4]]), many.images[:4])


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 999_999), st.integers(0, 9_999)), min_size=1, max_size=20), st.randoms())
def test_a_picture_depends_on_its_key_alone(keys, chance):
    together = render_faces([a for a, _ in keys], [b for _, b in keys], seed=5, size=48)
    k = chance.randrange(len(keys))
    alone = render_faces([keys[k][0]], [keys[k][1]], seed=5, size=48)
    assert torch.equal(alone.images[0], together.images[k])
    assert torch.equal(alone.landmarks[0], together.landmarks[k])


def test_the_number_of_threads_does_not_matter(many):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads != 3 else 1)
        again = render_faces(many.identities[:40].tolist(), [k % 8 for k in range(40)], seed=11)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again.images, many.images[:40])


def test_every_part_of_the_key_matters(many):
    base = render_faces([3], [0], seed=11).images
    assert torch.equal(base[0], many.images[24])
    for other in (render_faces([4], [0], seed=11), render_faces([3], [1], seed=11), render_faces([3], [0], seed=12)):
        assert (other.images != base).float().mean() > 0.5


def test_the_two_sizes_show_the_same_picture():
    small = render_faces([1, 2, 3], [0, 1, 2], seed=2, size=112)
    large = render_faces([1, 2, 3], [0, 1, 2], seed=2, size=160)
    torch.testing.assert_close(large.landmarks, small.landmarks * (160 / 112), rtol=1e-4, atol=1e-3)
    blurred = [torch.nn.functional.interpolate(b.images, 28, mode="area") for b in (small, large)]
    assert (blurred[0] - blurred[1]).abs().mean() < 0.02


@pytest.mark.parametrize(("size", "cut"), [((112, 96), (0, 8)), ((96, 112), (8, 0))])
def test_pictures_that_are_not_square_are_the_middle_of_square_ones(size, cut):
    square, drawn = (render_faces([1, 2], [0, 1], seed=2, size=each) for each in (112, size))
    top, left = cut
    assert torch.equal(drawn.images, square.images[:, :, top : top + size[0], left : left + size[1]])
    assert torch.equal(drawn.landmarks, square.landmarks - torch.tensor([left, top]))
    source = SyntheticFaces(identities=2, per_identity=1, seed=2, size=size)
    assert source.load(source.names[1]).image.shape == (3, *size)
    assert (source.size, source.shape) == (size, size)


def test_faces_are_aligned_to_the_template(many):
    """The best similarity onto the template is near the identity, and off by no more than a detector is."""
    for points in many.landmarks[:40].double().numpy():
        matrix = similarity(points, template(112))
        assert abs(matrix[0, 0] - 1) < 0.09
        assert abs(matrix[0, 1]) < 0.11
    mean = many.landmarks.mean(0).double()
    assert (mean - torch.tensor(template(112))).abs().max() < 3.0


def test_the_pupils_are_drawn_at_the_eye_landmarks():
    """The darkest pixel around an eye's landmark is the pupil, where the gaze leads it: within 4 pixels.

    Only people without glasses and pictures where the eye is not covered: the white beside it is seen.
    """
    drawn = render_faces(list(range(120)), [0] * 120, seed=11)
    grey = drawn.images.mean(1)
    near = seen = 0
    for image, points in zip(grey, drawn.landmarks[:, :2].round().long(), strict=True):
        for x, y in points.tolist():
            patch = image[y - 4 : y + 5, x - 7 : x + 8]
            if float(patch.max() - patch.min()) < 0.35:
                continue
            seen += 1
            middle = image[y - 2 : y + 3, x - 3 : x + 4]
            near += bool(middle.min() <= patch.min() + 0.12)
    assert seen > 60
    assert near / seen > 0.9


def test_the_mouth_is_drawn_at_the_mouth_landmarks():
    """Down the column between the two corners, the mean over people is darkest at the line between the lips."""
    drawn = render_faces(list(range(120)), [1] * 120, seed=11)
    at = drawn.landmarks[:, 3:].mean(1).round().long()
    rows = torch.arange(120)
    offsets = range(-9, 10)
    profile = torch.stack([drawn.images[rows, :, (at[:, 1] + d).clamp(max=111), at[:, 0]].mean() for d in offsets])
    assert abs(int(profile.argmin()) - 9) <= 2
    assert profile.min() < profile.max() - 0.05


def test_images_of_one_person_are_nearer_than_those_of_two(many):
    """Means over 8 images cancel what varies between them: the persons' means differ more than chance explains."""
    flat = torch.nn.functional.interpolate(many.images, 28, mode="area").flatten(1).view(20, 8, -1)
    halves = flat[:, :4].mean(1), flat[:, 4:].mean(1)
    distance = torch.cdist(halves[0] - halves[0].mean(0), halves[1] - halves[1].mean(0))
    own = distance.diag().mean()
    other = (distance.sum() - distance.diag().sum()) / (20 * 19)
    assert own < 0.8 * other
    within = (flat - flat.mean(1, keepdim=True)).square().mean()
    assert within > 0.005  # the nuisances are not small either: over 18/255 in the root mean square


def test_nothing_is_drawn_alike(many):
    small = torch.nn.functional.interpolate(many.images, 14, mode="area").flatten(1)
    distance = torch.cdist(small, small) + torch.eye(160) * 100
    assert distance.min() > 0.5


def test_the_source():
    source = SyntheticFaces(identities=3, per_identity=4, seed=9, first=7)
    assert isinstance(source, FaceSource)
    assert len(source) == 12
    assert source.names[0] == "s9-000007/0000"
    assert source.names == tuple(sorted(source.names))
    face = source.load("s9-000008/0002")
    assert isinstance(face, Face)
    assert face.identity == "s9-000008"
    assert face.id == face_id(face.name)
    assert len(face.source_hash) == 64
    drawn = render_faces([8], [2], seed=9)
    assert torch.equal(face.image, drawn.images[0])
    torch.testing.assert_close(torch.from_numpy(source.points(face.name)).float(), drawn.landmarks[0])


@pytest.mark.parametrize("ahead", [1, 5, 64])
def test_a_stream_gives_what_load_gives_in_order(ahead):
    source = SyntheticFaces(identities=5, per_identity=8, seed=9, size=48)
    names = source.names[::-1][:37]
    with source.stream(names, ahead=ahead) as stream:
        faces = list(stream)
    assert [face.name for face in faces] == list(names)
    for face in faces[::9]:
        one = source.load(face.name)
        assert torch.equal(one.image, face.image)
        assert one.source_hash == face.source_hash


def test_a_stream_can_be_left_early():
    source = SyntheticFaces(identities=50, per_identity=8, size=48)
    with source.stream() as stream:
        assert next(stream).name == source.names[0]
    with pytest.raises(StopIteration):
        next(stream)


def test_sources_of_disjoint_ranges_share_nobody():
    first = SyntheticFaces(identities=5, per_identity=1)
    second = SyntheticFaces(identities=5, per_identity=1, first=5)
    assert not {n.split("/")[0] for n in first.names} & {n.split("/")[0] for n in second.names}


def test_pairs():
    source = SyntheticFaces(identities=40, per_identity=4)
    pairs = source.pairs(200, folds=10, seed=3)
    assert len(pairs) == 200
    assert pairs == source.pairs(200, folds=10, seed=3)
    assert pairs != source.pairs(200, folds=10, seed=4)
    assert sum(p.same for p in pairs) == 100
    assert all((p.first.split("/")[0] == p.second.split("/")[0]) == p.same for p in pairs)
    assert len({frozenset((p.first, p.second)) for p in pairs}) == 200
    folds: dict[str, set[int | None]] = {}
    for p in pairs:
        assert p.first in source
        for name in (p.first, p.second):
            folds.setdefault(name.split("/")[0], set()).add(p.fold)
    assert all(len(found) == 1 for found in folds.values())
    assert len(folds) == 40


@pytest.mark.parametrize(
    ("count", "folds", "message"),
    [
        (30, 10, "count: expected a positive multiple of 2 x 10 folds, got 30"),
        (0, 2, "count: expected"),
        (20, 5, "names: expected at least 10 identities for 5 folds, got 4"),
        (2000, 2, "names: expected 500 pairs of one person in fold 0, got 6"),
    ],
)
def test_pairs_that_cannot_be_dealt(count, folds, message):
    with pytest.raises(PairError, match=message):
        SyntheticFaces(identities=4, per_identity=3).pairs(count, folds=folds)


def test_too_few_pairs_of_two_people():
    with pytest.raises(PairError, match="pairs of two people in fold 0, got 1|pairs of one person in fold 0, got 0"):
        SyntheticFaces(identities=2, per_identity=1).pairs(4, folds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed: expected a number in"),
        ({"size": 8}, "size: expected 32 to 512 pixels, got 8"),
        ({"per_identity": 0}, "per_identity: expected 1 to 10000, got 0"),
        ({"identities": 0}, "identities, first: expected numbers within"),
        ({"first": 999_999, "identities": 2}, "got 2 from 999999 on"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticFaces(**arguments)


def test_wrong_keys():
    with pytest.raises(ValueError, match="identities: expected numbers from 0 to 999999, got -1"):
        render_faces([-1], [0])
    with pytest.raises(ValueError, match="indices: expected numbers from 0 to 9999, got 10000"):
        render_faces([0], [10_000])
    with pytest.raises(ValueError, match="indices: expected one for each of the 2 identities, got 1"):
        render_faces([0, 1], [0])
    source = SyntheticFaces(identities=1, per_identity=1)
    with pytest.raises(KeyError, match="name: expected one of the 1 images, got nobody/0"):
        source.load("nobody/0")
    with pytest.raises(KeyError, match="names: expected some of the .* images, got nobody/0"):
        source.stream(["nobody/0"])
    with pytest.raises(ValueError, match="expected several names"):
        source.stream("nobody/0")
