"""The adversarial copy of a set of pairs: who goes for whom, what is written, and that verifiers read it unchanged."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import fastadv as fa
from fastadv import attacks
from fastadv.core.notices import Notice
from fastadv.data import (
    LFW,
    IdentityFolder,
    Pair,
    PairBin,
    PairError,
    RunFolder,
    RunFolderError,
    face_id,
    read_landmarks,
    read_manifest,
    to_uint8,
)
from fastadv.data.alignment import template
from fastadv.data.lfw import write_lfw_pairs
from fastadv.data.stored import ImageFormat
from fastadv.engine import Engine
from fastadv.runs import Work, describe, inputs, list_hash
from fastadv.studies.talfw.files import reader
from fastadv.studies.talfw.measure import Aim, build, check_threshold, choose_targets, claim, plan
from fastadv.studies.verify import verify
from fastadv.surrogates import Ensemble, Surrogate

PEOPLE = ("Ann_A", "Bo", "Cy", "Di")
EPS = 16 / 255


def name(person: int, number: int) -> str:
    return f"{PEOPLE[person]}/{PEOPLE[person]}_{number:04d}"


def pair(first: tuple[int, int], second: tuple[int, int], fold: int = 0) -> Pair:
    return Pair(first=name(*first), second=name(*second), same=first[0] == second[0], fold=fold)


PAIRS = (
    pair((0, 1), (0, 2)),
    pair((1, 1), (1, 2)),
    pair((0, 1), (2, 1)),
    pair((0, 1), (3, 1)),
    pair((2, 2), (2, 3), 1),
    pair((2, 2), (2, 1), 1),
    pair((3, 2), (1, 3), 1),
    pair((3, 2), (0, 3), 1),
)


@pytest.fixture(scope="module")
def lfw(tmp_path_factory):
    """Four people of three images in LFW's layout, 150 x 130, as PNG and JPEG; the face fills a part."""
    root = tmp_path_factory.mktemp("lfw")
    rng = np.random.default_rng(0)
    turn = np.array([[0.996, 0.087], [-0.087, 0.996]])
    lines = []
    for person, who in enumerate(PEOPLE):
        look = rng.integers(60, 196, (6, 6, 3))
        for number in (1, 2, 3):
            noisy = np.clip(look + rng.integers(-15, 15, look.shape), 0, 255).astype(np.uint8)
            path = root / "images" / who / f"{who}_{number:04d}.{'png' if number == 1 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).resize((150, 130), Image.Resampling.BICUBIC).save(path)
            points = template(112) @ turn + (8 + person, 14)
            lines.append(f"{who}/{path.name} " + " ".join(f"{v:.2f}" for v in points.ravel()) + " 0.99")
    (root / "landmarks.txt").write_text("\n".join(lines) + "\n")
    write_lfw_pairs(root / "pairs.txt", PAIRS)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.AvgPool2d(7), nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16, bias=False)
    )
    return fa.FaceModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, name="small").eval()


def make(source, pairs, model, out, attack=None, *, targets="all", threshold=None, **more):
    moves = attack or attacks.fim(eps=EPS, steps=20)
    aims = plan(source, pairs, targets=targets)
    engine = Engine(batch=4).resolve(model)
    config = {"attack": describe(moves), "orders": list_hash(aims), "threshold": threshold}
    with RunFolder.open(claim(out), config) as folder:
        work = Work(folder=folder, engine=engine)
        return build(aims, pairs, source, model, moves, work, out=out, threshold=threshold, **more)


@pytest.fixture(scope="module")
def made(lfw, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("talfw") / "out"
    return out, make(LFW(lfw), LFW(lfw).pairs, model, out)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def mode(path):
    with Image.open(path) as image:
        return image.mode


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# who goes for whom


def test_an_image_goes_for_its_negative_partners_and_without_any_leaves_its_positive_ones(lfw):
    aims = plan(LFW(lfw), PAIRS)
    assert aims == [
        Aim(name=name(0, 1), goal="impersonate", partners=(name(2, 1), name(3, 1))),
        Aim(name=name(1, 1), goal="evade", partners=(name(1, 2),)),
        Aim(name=name(2, 2), goal="evade", partners=(name(2, 3), name(2, 1))),
        Aim(name=name(3, 2), goal="impersonate", partners=(name(1, 3), name(0, 3))),
    ]


def test_one_target_is_one_that_stays_as_it_is(lfw):
    hub, left, right = (0, 1), (1, 1), (2, 1)
    pairs = [pair(hub, left), pair(hub, right), pair(hub, (0, 2)), pair(left, (1, 2)), pair(left, (3, 1))]
    both = plan(LFW(lfw), pairs)
    assert [(a.name, a.partners) for a in both] == [
        (name(0, 1), (name(1, 1), name(2, 1))),
        (name(1, 1), (name(0, 1), name(3, 1))),
    ]
    one = plan(LFW(lfw), pairs, targets="one")
    assert [a.partners for a in one] == [(name(2, 1),), (name(3, 1),)]


def test_all_targets_are_one_direction(made, lfw, model):
    """An image's goal has the mean direction u of its partners; cos(F(x), u) rises as the sum of the cosines does."""
    source = LFW(lfw)
    aim = plan(source, PAIRS)[0]
    image = source.load(aim.name).image[None]
    partners = model(torch.stack([source.load(partner).image for partner in aim.partners])).detach()
    u = F.normalize(partners.sum(0, keepdim=True), dim=1)
    goal, attack = fa.Impersonate(u, threshold=1.0), attacks.fim(eps=EPS, steps=20)
    alone = fa.run(attack, goal, model, image, ids=[face_id(aim.name)], engine=Engine(batch=4))
    np.testing.assert_array_equal(
        pixels(made[0] / "crops" / "images" / f"{aim.name}.png"), to_uint8(alone.images[0]).astype(int)
    )
    double = copy.deepcopy(model).double()
    x = image.double().requires_grad_(True)
    own = double(x)
    (by_sum,) = torch.autograd.grad((own @ partners.double().T).sum(), x, retain_graph=True)
    (by_one,) = torch.autograd.grad((own @ u.double().T).sum(), x)
    assert float(F.cosine_similarity(by_sum.flatten(), by_one.flatten(), dim=0)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ((), {}, "pairs: expected at least one, got none"),
        ([pair((0, 1), (1, 9))], {}, "pairs: expected images that are there, got Bo/Bo_0009"),
        (PAIRS, {"targets": "most"}, "targets: expected one of all, one, got 'most'"),
    ],
)
def test_a_plan_refuses_what_it_cannot_do(pairs, options, message, lfw):
    with pytest.raises(ValueError, match=message):
        plan(LFW(lfw), pairs, **options)


def test_a_plan_needs_image_files_crops_and_landmarks(lfw, tmp_path):
    with pytest.raises(PairError, match="expected two images in each"):
        plan(LFW(lfw), [pair((0, 1), (0, 1))])
    with pytest.raises(ValueError, match=r"data: expected a source of aligned crops, got one of whole files"):
        plan(LFW(lfw, size=None), PAIRS)
    some = {k: v for k, v in read_landmarks(lfw / "landmarks.txt").items() if not k.startswith("Cy")}
    with pytest.raises(ValueError, match="landmarks: expected a line for every image of the pairs, .* Cy/Cy_00"):
        plan(LFW(lfw, landmarks=some), PAIRS)
    spaced = tmp_path / "faces" / "A b"
    spaced.mkdir(parents=True)
    for k in "12":
        shutil.copy(lfw / "images" / "Bo" / "Bo_0001.png", spaced / f"{k}.png")
    points = {f"A b/{k}": template(112) for k in "12"}
    with pytest.raises(ValueError, match="data: expected names without white space"):
        plan(IdentityFolder(spaced.parent, landmarks=points), [Pair(first="A b/1", second="A b/2", same=True)])


def test_a_packed_set_must_be_unpacked(lfw):
    class Packed(PairBin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="data: expected a folder of image files, got Packed; unpack it first"):
        plan(Packed(), PAIRS)


def test_targets_follow_what_the_attack_can(model):
    plain = attacks.fim()
    other = fa.FaceModel(model.backbone, mean=(0.5,) * 3, std=(0.5,) * 3, name="other").eval()
    several = replace(plain, surrogate=Surrogate(ensemble=Ensemble(others=(other,))))
    assert choose_targets(None, plain) == "all"
    assert choose_targets("one", plain) == "one"
    assert choose_targets(None, several) == "one"
    with pytest.raises(ValueError, match="targets: expected one for fim, which compares with a single image, got all"):
        choose_targets("all", several)
    with pytest.raises(ValueError, match="targets: expected one of all, one, got 'both'"):
        choose_targets("both", plain)


def test_a_threshold_is_a_cosine_and_measured_on_both_classes(lfw, model, tmp_path):
    check_threshold(0.3, PAIRS[:1])
    check_threshold(None, PAIRS)
    with pytest.raises(ValueError, match=r"threshold: expected a cosine value in \[-1, 1\], got 3"):
        check_threshold(3, PAIRS)
    with pytest.raises(ValueError, match="threshold: expected a number for pairs of one class only"):
        check_threshold(None, PAIRS[:2])
    with pytest.raises(ValueError, match="threshold: expected a number for pairs of one class only"):
        make(LFW(lfw), PAIRS[:2], model, tmp_path / "out")
    summary = make(LFW(lfw), [p for p in PAIRS if not p.same], model, tmp_path / "negative", threshold=0.5)
    assert (summary.threshold, summary.evasion) == (0.5, None)


# what is written


def test_the_layout_is_lfw_s_own_and_holds_the_images_of_the_pairs(made, lfw):
    out, summary = made
    assert sorted(p.name for p in out.iterdir()) == [
        "checksums.sha256",
        "crops",
        "images",
        "landmarks.txt",
        "pairs.txt",
        "talfw.json",
    ]
    assert (out / "pairs.txt").read_bytes() == (lfw / "pairs.txt").read_bytes()
    faces = LFW(out)
    assert faces.pairs == LFW(lfw).pairs
    assert sorted(faces.names) == sorted({n for p in PAIRS for n in (p.first, p.second)})
    assert (summary.pairs, summary.images, summary.changed, summary.both) == (8, len(faces), 4, 0)
    for each in faces.names:
        np.testing.assert_array_equal(faces.landmarks[each], LFW(lfw).landmarks[each])
    assert reader(LFW(lfw), out) == ("--data", str(out))


def test_no_ending_and_no_coding_tells_a_changed_image_from_another(made, lfw):
    out, summary = made
    chosen = {aim.name for aim in plan(LFW(lfw), PAIRS)}
    assert summary.stored == "png"
    for each in LFW(out).names:
        before, after = LFW(lfw).path(each), LFW(out).path(each)
        assert (after.stem, after.suffix, mode(after)) == (before.stem, ".png", "RGB")
        assert after.read_bytes()[:33] == LFW(out).path(name(0, 1)).read_bytes()[:33]  # the header
        assert (pixels(after) == pixels(before)).all() == (each not in chosen)
    assert {line.split()[0][-4:] for line in (out / "landmarks.txt").read_text().splitlines()[1:]} == {".png"}


def test_chosen_images_change_inside_the_budget_and_in_the_crop_only(made, lfw):
    out, summary = made
    largest, norms = 0, []
    for aim in plan(LFW(lfw), PAIRS):
        before, after = pixels(LFW(lfw).path(aim.name)), pixels(LFW(out).path(aim.name))
        moved = np.abs(after - before)
        assert after.shape == (130, 150, 3)
        assert 0 < moved.max() <= 16
        largest = max(largest, moved.max())
        norms.append(np.linalg.norm((after - before) / 255))
        v, u = np.mgrid[:130, :150] + 0.5
        matrix = LFW(lfw).load(aim.name).matrix
        x, y = np.moveaxis(np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.T, -1, 0)
        outside = (x < 0) | (x >= 112) | (y < 0) | (y >= 112)
        assert outside.any()
        assert not moved[outside].any()
    assert summary.linf == pytest.approx(largest / 255)
    assert summary.l2 == pytest.approx(np.mean(norms), rel=1e-5)


def test_the_written_images_align_to_the_adversarial_crops(made, lfw):
    """Most of each change survives; the summary says how much, measured here by the reader itself."""
    out, summary = made
    given = returned = 0.0
    for row in read_manifest(out / "crops"):
        clean = LFW(lfw).load(row.name).image * 255
        crop = torch.from_numpy(pixels(out / "crops" / "images" / f"{row.name}.png")).permute(2, 0, 1)
        change, found = crop - clean, LFW(out).load(row.name).image * 255 - clean
        assert float(F.cosine_similarity(change.flatten(), found.flatten(), dim=0)) > 0.8
        given += float((change * change).sum())
        returned += float((change * found).sum())
    assert summary.kept == pytest.approx(returned / given, abs=0.01)
    assert summary.kept > 0.6


def test_the_manifest_says_what_each_crop_went_for(made, lfw):
    out, summary = made
    rows = read_manifest(out / "crops")
    wanted = [(a.name, a.goal, ";".join(a.partners)) for a in plan(LFW(lfw), PAIRS)]
    assert [(r.name, r.goal, r.target) for r in rows] == wanted
    assert all((r.attack, r.eps) == ("fim", EPS) for r in rows)
    assert all((r.score_after > r.score_before) == (r.goal == "impersonate") for r in rows)
    assert (summary.impersonation.images, summary.evasion.images) == (2, 2)


def test_the_attacked_network_is_wrong_about_the_copy(made, lfw, model):
    out, summary = made
    clean = verify(LFW(lfw), LFW(lfw).pairs, model).clean
    assert summary.threshold == clean.eer_threshold
    assert clean.auc > 0.9
    assert verify(LFW(out), LFW(out).pairs, model).clean.auc < 0.3


def test_summary_and_a_second_call_agree_and_nothing_is_written_again(made, lfw, model):
    out, summary = made
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert make(LFW(lfw), LFW(lfw).pairs, model, out) == summary
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == stamps
    written = json.loads((out / "talfw.json").read_text())
    assert (written["changed"], written["kept"]) == (summary.changed, summary.kept)
    with pytest.raises(RunFolderError, match="holds another run; attack.steps"):
        make(LFW(lfw), LFW(lfw).pairs, model, out, attacks.fim(eps=EPS, steps=3))


@pytest.mark.parametrize("lost", ["talfw.json", "images", "crops/manifest.parquet"])
def test_what_a_killed_call_has_not_written_is_made_again_with_the_same_bytes(lost, made, lfw, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    (out / "talfw.json").unlink()
    (out / "pairs.txt").unlink()
    if lost == "images":
        shutil.rmtree(out / "images" / "Ann_A")
        (out / "images" / "Bo" / ".0123.fastadv-tmp").write_bytes(b"half an image")
    elif lost.endswith("parquet"):
        (out / lost).unlink()
    assert make(LFW(lfw), LFW(lfw).pairs, model, out) == made[1]
    assert files(out) == files(made[0])


def test_a_file_that_changed_since_it_was_attacked_is_refused(made, lfw, model, tmp_path):
    root, out = tmp_path / "lfw", tmp_path / "out"
    shutil.copytree(lfw, root)
    shutil.copytree(made[0], out)
    (out / "talfw.json").unlink()
    path = LFW(root).path(name(0, 1))
    Image.fromarray(pixels(path).astype(np.uint8)[::-1]).save(path)
    with pytest.raises(
        ValueError, match=r"Ann_A_0001\.png: expected the file that was attacked, got one that has changed"
    ):
        make(LFW(root), LFW(root).pairs, model, out)
    assert not (out / "talfw.json").exists()


# grey pictures and JPEG


@pytest.fixture(scope="module")
def greys(lfw, tmp_path_factory):
    """The same faces: Ann's and Di's grey as one channel, Bo's grey as three, Cy's in colour."""
    root = tmp_path_factory.mktemp("grey") / "lfw"
    shutil.copytree(lfw, root)
    for path in root.glob("images/*/*"):
        if not path.name.startswith("Cy"):
            with Image.open(path) as image:
                grey = image.convert("L")
            (grey.convert("RGB") if path.name.startswith("Bo") else grey).save(path)
    return root


def test_grey_pictures_come_back_grey_in_the_mode_of_their_files(greys, model, tmp_path):
    source, grey = LFW(greys), {}
    for option in (False, True):
        out = tmp_path / str(option)
        grey[option] = make(source, PAIRS, model, out, grey=option)
        for each in LFW(out).names:
            before, after = source.path(each), LFW(out).path(each)
            assert mode(after) == mode(before)
            moved = pixels(after) - pixels(before)
            assert np.abs(moved).max() <= 16
            if not each.startswith("Cy"):
                assert (moved == moved[..., :1]).all()
        crops = [pixels(out / "crops" / "images" / f"{row.name}.png") for row in read_manifest(out / "crops")]
        same = [bool((crop == crop[..., :1]).all()) for crop in crops]
        assert same == [option, option, False, option]  # the third is Cy's, in colour
    assert grey[True].grey == grey[False].grey == 3
    assert grey[True].kept > grey[False].kept  # nothing of the change is lost to the mean of the channels
    assert grey[True].impersonation_written is not None


def test_a_random_start_and_an_ensemble_stay_grey_too(greys, model, tmp_path):
    recipe = replace(
        attacks.pgd(eps=EPS, steps=3), surrogate=Surrogate(ensemble=Ensemble(others=(copy.deepcopy(model),)))
    )
    make(LFW(greys), PAIRS, model, tmp_path / "out", recipe, targets="one", grey=True)
    changed = pixels(LFW(tmp_path / "out").path(name(0, 1)))
    assert (changed == changed[..., :1]).all()


def test_jpeg_is_measured_as_it_is_decoded(made, lfw, greys, model, tmp_path):
    source, out = LFW(lfw), tmp_path / "out"
    summary = make(source, PAIRS, model, out, stored=ImageFormat(name="jpeg", quality=30))
    assert summary.stored == "jpeg, quality 30"
    assert {path.suffix for path in (out / "images").glob("*/*")} == {".jpg"}
    assert {line.split()[0][-4:] for line in (out / "landmarks.txt").read_text().splitlines()[1:]} == {".jpg"}
    largest = max(
        np.abs(pixels(LFW(out).path(aim.name)) - pixels(source.path(aim.name))).max() for aim in plan(source, PAIRS)
    )
    assert summary.linf == pytest.approx(largest / 255)
    assert summary.linf > made[1].linf  # the budget does not hold in a JPEG file
    assert summary.kept < made[1].kept
    tables = set()
    for path in (out / "images").glob("*/*"):
        with Image.open(path) as image:
            tables.add(bytes(image.quantization[0]))
    assert len(tables) == 1
    grey = tmp_path / "grey"
    make(LFW(greys), PAIRS, model, grey, stored=ImageFormat(name="jpeg"))
    assert {mode(path) for path in (grey / "images" / "Ann_A").glob("*")} == {"L"}


def test_success_is_measured_again_on_the_written_images(made, lfw, model):
    out, summary = made
    partners = LFW(lfw)
    reached = []
    for aim in plan(partners, PAIRS):
        others = torch.stack([partners.load(each).image for each in aim.partners])
        with torch.no_grad():
            u = F.normalize(model(others).sum(0), dim=0)
            score = float(model(LFW(out).load(aim.name).image[None])[0] @ u)
        reached.append((aim.goal, (score >= summary.threshold) == (aim.goal == "impersonate")))
    for goal, found in (("impersonate", summary.impersonation_written), ("evade", summary.evasion_written)):
        assert found == np.mean([hit for kind, hit in reached if kind == goal])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "gif"}, "format: expected one of png, jpeg, got 'gif'"),
        ({"name": "jpeg", "quality": 0}, "quality: expected a whole number from 1 to 100, got 0"),
        ({"name": "jpeg", "quality": 95.5}, "quality: expected a whole number from 1 to 100, got 95.5"),
    ],
)
def test_a_format_is_checked(values, text):
    with pytest.raises(ValueError, match=text):
        ImageFormat(**values)


# other sets of pairs


def test_pairs_that_lfw_s_form_cannot_say_come_as_csv(lfw, model, tmp_path):
    source, out = LFW(lfw), tmp_path / "out"
    make(source, PAIRS[:3], model, out)
    assert not (out / "pairs.txt").exists()
    assert reader(source, out) == ("--data", str(out), "--pairs", str(out / "pairs.csv"))
    faces = inputs.open_faces(out, size=112)
    assert inputs.open_pairs(faces, file=out / "pairs.csv", verified=False) == PAIRS[:3]
    assert faces.load(name(2, 1)).image.equal(source.load(name(2, 1)).image)


def test_a_folder_without_landmarks_is_read_as_it_was(lfw, model, tmp_path):
    source, out = IdentityFolder(lfw / "images"), tmp_path / "out"
    with pytest.warns(Notice, match="no landmarks"):
        make(source, PAIRS, model, out)
    assert not (out / "landmarks.txt").exists()
    found = reader(source, out)
    assert found == ("--data", str(out / "images"), "--pairs", str(out / "pairs.csv"))
    faces = inputs.open_faces(out / "images", size=112)
    assert isinstance(faces, IdentityFolder)
    assert faces.load(name(2, 1)).image.equal(source.load(name(2, 1)).image)
    with pytest.warns(Notice, match="no landmarks"):
        assert verify(faces, PAIRS, model).clean.auc < verify(source, PAIRS, model).clean.auc


def test_an_ensemble_goes_for_the_partner_s_image(lfw, model, tmp_path):
    torch.manual_seed(1)
    net = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(768, 12, bias=False))
    other = fa.FaceModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, name="other").eval()
    recipe = replace(attacks.fim(eps=EPS, steps=20), surrogate=Surrogate(ensemble=Ensemble(others=(other,))))
    out = tmp_path / "out"
    make(LFW(lfw), PAIRS, model, out, recipe, targets=choose_targets(None, recipe))
    assert [r.target.count(";") for r in read_manifest(out / "crops")] == [0, 0, 0, 0]
    for network in (model, other):
        assert verify(LFW(out), PAIRS, network).clean.auc < verify(LFW(lfw), PAIRS, network).clean.auc


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        claim(tmp_path / "file")
    with pytest.raises(ValueError, match="out: expected a new or empty folder, .*, which holds file"):
        claim(tmp_path)
    assert claim(tmp_path / "new") == tmp_path / "new" / "crops"
    assert not (tmp_path / "new").exists()
