"""A detector that reads both distances: the mean of two networks as one, in a guard, in a file, and as the default."""

from __future__ import annotations

import pytest
import torch
from small import grey_images

import fastadv as fa
from fastadv.detection import Architecture, Detector, FitConfig, LayerTap, Network, Trajectory, side_by_side
from fastadv.testing.tolerances import assert_same_bits

KINDS = ("linear", "mlp", "lstm")


def network(kind, *, width=5, hidden=7, layers=3, seed=0, dropout=0.5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Network(Architecture(kind=kind, layers=layers, width=width, hidden=hidden, dropout=dropout)).eval()
        made.mean.normal_()
        made.scale.uniform_(0.5, 2)
    return made


@pytest.mark.parametrize(
    "groups",
    [
        *([[(kind, 5, 7)], [(kind, 5, 7)]] for kind in KINDS),
        *([[(kind, 4, 3), (kind, 4, 2)], [(kind, 2, 9)], [(kind, 1, 1)]] for kind in KINDS),
        [[("mlp", 5, 7), ("linear", 5, 1)], [("linear", 3, 1)]],
        [[("linear", 2, 1)], [("linear", 2, 1), ("mlp", 2, 4)]],
    ],
)
def test_side_by_side_is_the_mean_of_the_logits(groups):
    made, widths = [], [group[0][1] for group in groups]
    for sizes in groups:
        group = [network(kind, width=w, hidden=h, seed=len(made) + k) for k, (kind, w, h) in enumerate(sizes)]
        for each in group[1:]:
            each.mean.copy_(group[0].mean)
            each.scale.copy_(group[0].scale)
        made.append(group)
    whole = side_by_side(*made)
    read = torch.randn(11, 3, sum(widths), generator=torch.Generator().manual_seed(1))
    parts = read.double().split(widths, dim=2)
    logits = [each.double()(part) for group, part in zip(made, parts, strict=True) for each in group]
    torch.testing.assert_close(whole(read).double(), torch.stack(logits).mean(0), rtol=1e-5, atol=1e-6)
    assert not whole.training
    assert not any(value.requires_grad for value in whole.parameters())


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([], r"networks in each, LSTMs or others, got \[\], \[\]"),
        ([[network("mlp")], []], r"networks in each, LSTMs or others, got \[1, 0\], \['mlp'\]"),
        ([[network("mlp")], [network("lstm")]], r"networks in each, LSTMs or others, got \[1, 1\], \['lstm', 'mlp'\]"),
        ([[network("mlp")], [network("mlp", layers=2)]], "networks of one number of layers, got several"),
        ([[network("mlp"), network("mlp", seed=1)]], "one standardisation in a group, got several"),
        ([[network("mlp"), network("mlp", width=4)]], "one standardisation in a group, got several"),
    ],
)
def test_networks_that_do_not_stand_beside_each_other(groups, text):
    with pytest.raises(ValueError, match=f"groups: expected {text}"):
        side_by_side(*groups)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", ["raw", "relative"])
def test_a_detector_of_both_scores_the_mean_of_two(tiny, faces, representatives, tmp_path, kind, reading):
    """Scored, in the guard's compiled call, with claims, and read from its file."""
    width = len(representatives.classes) if reading == "raw" else 5
    parts = [network(kind, width=width, seed=k) for k in range(2)]

    def detector(metric, read):
        trajectory = Trajectory(representatives=representatives, metric=metric, reading=reading)
        return Detector(trajectory=trajectory, network=read.requires_grad_(False))

    alone = [detector(metric, part) for metric, part in zip(("l2", "cosine"), parts, strict=True)]
    both = detector("l2+cosine", side_by_side(*([part] for part in parts)))
    both.save(tmp_path / "both.safetensors")
    x = faces(9)
    values = LayerTap(model=tiny, keep_maps=True)(x).values
    expected = torch.stack([each.score(values) for each in alone]).mean(0)
    torch.testing.assert_close(both.score(values), expected, rtol=1e-5, atol=1e-5)
    read = fa.load_detector(tmp_path / "both.safetensors")
    assert read.trajectory.metric == "l2+cosine"
    assert_same_bits(read.score(values), both.score(values))
    guard = fa.Guard(model=tiny, detector=read, threshold=0.0)
    torch.testing.assert_close(guard(x).scores, expected, rtol=1e-4, atol=1e-4)
    if reading == "relative":
        names = [representatives.classes[k % 4] for k in range(9)]
        names[3] = names[7] = None  # by each distance the class nearest by it
        own = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, 0])
        claimed = torch.stack([each.score(values, own) for each in alone]).mean(0)
        torch.testing.assert_close(guard(x, names).scores, claimed, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.score(values, own), claimed, rtol=1e-5, atol=1e-5)


def test_it_has_a_derivative(representatives, labelled):
    trajectory = Trajectory(representatives=representatives, metric="l2+cosine", reading="relative")
    values = [value[:3].double().requires_grad_() for value in labelled(8)[0]]

    def read(*given):
        # the float32 operation, and its derivative against central differences of the formula in float64
        return trajectory([value.float() for value in given], torch.tensor([0, 1, 2])).double()

    made = read(*values)
    seen = torch.randn(made.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = torch.autograd.grad((made * seen).sum(), values)
    step = 1e-2
    for value, grad in zip(values, grads, strict=True):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [v + sign * step * direction if v is value else v for v in values]
            ends.append(float((read(*moved).detach() * seen).sum()))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float((grad * direction).sum()), rel=2e-2, abs=1e-3)


def test_one_call_fits_both_by_default():
    model = fa.load("synth-vgg")
    natural = grey_images(24, size=model.input_size)
    config = FitConfig(kind="mlp", hidden=4, epochs=2, batch=16)
    given = {"labels": torch.arange(24) % 3, "config": config}
    relative = fa.detection.fit(model, natural, 1 - natural, **given)
    raw = fa.detection.fit(model, natural, 1 - natural, **given, reading="raw")
    assert (relative.trajectory.metric, raw.trajectory.metric) == ("l2+cosine", "l2")
    assert relative.network.architecture.hidden == 8
    alone = [fa.detection.fit(model, natural, 1 - natural, **given, metric=metric) for metric in ("l2", "cosine")]
    tap = LayerTap(model=model, layers=relative.layers)
    with torch.no_grad():
        values = tap(natural[:6]).values
    expected = torch.stack([each.score(values) for each in alone]).mean(0)
    torch.testing.assert_close(relative.score(values), expected, rtol=1e-4, atol=1e-4)
    usual = fa.detection.fit(model, natural, 1 - natural, labels=given["labels"]).network.architecture
    assert (usual.kind, usual.hidden) == ("mlp", 2 * 100)


@pytest.mark.gpu
@pytest.mark.parametrize("kinds", [("linear",), ("mlp",), ("lstm",), ("mlp", "linear")])
def test_side_by_side_stays_on_its_device(kinds, representatives, labelled):
    groups = [[network(kind, hidden=7).cuda() for kind in kinds] for _ in range(2)]
    for group in groups:
        for each in group[1:]:
            each.mean.copy_(group[0].mean)
            each.scale.copy_(group[0].scale)
    whole = side_by_side(*groups)
    read = torch.randn(9, 3, 10, generator=torch.Generator().manual_seed(1)).cuda()
    logits = [each(part) for group, part in zip(groups, read.chunk(2, dim=2), strict=True) for each in group]
    torch.testing.assert_close(whole(read), torch.stack(logits).mean(0), rtol=1e-4, atol=1e-5)
    trajectory = Trajectory(representatives=representatives, metric="l2+cosine", reading="relative")
    values = labelled(8)[0]
    on_gpu = trajectory.to("cuda")([value.cuda() for value in values]).cpu()
    torch.testing.assert_close(on_gpu, trajectory(values), rtol=1e-4, atol=1e-4)
