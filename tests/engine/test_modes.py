"""Modes that a caller has switched on change no bit of a result, and are the caller's again between two results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from small import grey_images
from torch import nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import Gallery, GalleryClass, Impersonate, Misclassify
from fastadv.detection import Architecture, Detector, Guard, LayerTap, Network, Trajectory, centroids
from fastadv.engine import Engine, Job, stream_jobs, trace
from fastadv.models.modes import plain_modes

SIZE = (16, 16)


faces = partial(grey_images, size=SIZE)


@contextlib.contextmanager
def setting(before, put, value) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: setting(torch.float32, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: setting(torch.float32, torch.set_default_dtype, torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "medium": lambda: setting("highest", torch.set_float32_matmul_precision, "medium"),
    "device": lambda: torch.device("meta"),
    "deterministic": lambda: setting(False, torch.use_deterministic_algorithms, True),
    "several": lambda: nest(torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), torch.device("meta")),
}


@contextlib.contextmanager
def nest(*modes) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def model() -> fa.FaceModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(512, 12),
    )
    half = (0.5, 0.5, 0.5)
    return fa.FaceModel(
        net, input_size=SIZE, mean=half, std=half, name="small", head=nn.Linear(12, 5), layers=("0", "2")
    ).eval()


NET, X, TARGETS = model(), faces(3), faces(3, seed=2)
with torch.no_grad():
    LABELS = NET.logits(X).argmax(1)
    GALLERY = Gallery(templates=NET(TARGETS), classes=torch.arange(3))
GOAL = Impersonate(TARGETS, threshold=0.99)
ANY, ONE = Misclassify(LABELS), GalleryClass(gallery=GALLERY, labels=torch.arange(3))
SETTINGS = {
    "pgd": (attacks.pgd(steps=3), GOAL, None),
    "bf16": (attacks.pgd(steps=3), GOAL, Engine(precision="bf16")),
    "dfanet": (attacks.dfanet_di_m_fim(steps=3, rate=0.1), GOAL, None),
    "cw": (attacks.cw_l2(steps=3), ANY, None),
    "deepfool": (attacks.deepfool(steps=3), ANY, None),
    "noise": (attacks.noise_uniform(), ANY, None),
    "gallery": (attacks.knn_df(steps=3), ONE, None),
}


@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_has_the_same_bits(name, mode):
    attack, goal, engine = SETTINGS[name]
    plain = fa.run(attack, goal, NET, X, engine=engine, seed=3)
    with MODES[mode]():
        made = fa.run(attack, goal, NET, X, engine=engine, seed=3)
    for field in ("images", "success", "ticks", "linf", "l2", "score_before", "score_after"):
        one, other = getattr(plain, field), getattr(made, field)
        assert one.dtype == other.dtype, field
        assert torch.equal(one, other), field


@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
def test_inputs_of_inference_mode_have_the_same_bits():
    plain = fa.run(attacks.pgd(steps=3), GOAL, NET, X)
    with torch.inference_mode():
        net, x, goal = model(), faces(3), Impersonate(faces(3, seed=2), threshold=0.99)
    assert torch.equal(fa.run(attacks.pgd(steps=3), goal, net, x).images, plain.images)
    with torch.inference_mode():
        gallery = Gallery(templates=NET(TARGETS), classes=torch.arange(3))
    within = GalleryClass(gallery=gallery, labels=torch.arange(3))
    made, wanted = (fa.run(attacks.knn_df(steps=3), goal, NET, X).images for goal in (within, ONE))
    assert torch.equal(made, wanted)


def modes_now() -> tuple[object, ...]:
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_are_the_callers_between_two_results_and_in_its_own_code(mode):
    seen = []

    def jobs() -> Iterator[Job]:
        for i in range(3):
            seen.append(modes_now())
            yield Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i))

    attack, engine = attacks.pgd(steps=2), Engine(slots=1, batch=1)
    outside = modes_now()
    plain = [r.image for r in stream_jobs(attack, jobs(), NET, engine=engine)]
    seen.clear()
    with MODES[mode]():
        inside = modes_now()
        made = []
        for result in stream_jobs(attack, jobs(), NET, engine=engine):
            made.append(result.image)
            assert modes_now() == inside
        for _, _images in trace(attack, GOAL, NET, X, at=[1, 2]):
            assert modes_now() == inside
    assert modes_now() == outside
    assert set(seen) == {inside}
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))


def test_a_stream_that_is_dropped_leaves_nothing_behind():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = modes_now()
        jobs = [Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i)) for i in range(3)]
        results = stream_jobs(attacks.pgd(steps=2), jobs, NET, engine=Engine(slots=1, batch=1))
        next(results)
        results.close()
        assert modes_now() == inside


def test_jobs_that_leak_a_mode_change_nothing():
    def jobs() -> Iterator[Job]:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            for i in range(3):
                yield Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i))

    plain = fa.run(attacks.pgd(steps=2), GOAL, NET, X)
    made = {r.name: r for r in stream_jobs(attacks.pgd(steps=2), jobs(), NET)}
    assert all(torch.equal(made[str(i)].image, plain.images[i]) for i in range(3))
    assert modes_now()[:3] == (False, True, False)


def detector() -> Detector:
    tap = LayerTap(model=NET)
    with torch.no_grad():
        batch = (tap(faces(12, seed=5)).values, torch.arange(12) % 4)
    representatives = centroids([batch], layers=tap.names, classes=tuple("abcd"), model=NET.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Network(Architecture(kind="mlp", layers=2, width=4, hidden=6)).eval().requires_grad_(False)
    return Detector(trajectory=Trajectory(representatives=representatives, metric="l2"), network=network)


@pytest.mark.parametrize("mode", MODES)
def test_a_guard_has_the_same_bits(mode):
    made = detector()
    guard = Guard(model=NET, detector=made, threshold=0.0)
    plain = guard(X)
    with MODES[mode]():
        found = [guard(X), Guard(model=NET, detector=made, threshold=0.0)(X)]
    for each in found:
        assert each.scores.dtype == each.embeddings.dtype == torch.float32
        assert torch.equal(each.scores, plain.scores)
        assert torch.equal(each.embeddings, plain.embeddings)


def test_a_guard_refuses_a_network_that_mixes_the_batch():
    net = model()
    net.backbone[1] = nn.BatchNorm2d(8, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"company of other images.*'backbone\.1' \(BatchNorm2d\)"):
        Guard(model=net, detector=detector(), threshold=0.0)


def test_two_threads_share_the_process_wide_settings():
    with MODES["float64"]():
        first, second = plain_modes(torch.device("cpu")), plain_modes(torch.device("cpu"))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float32  # the second is at work still
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float64


@pytest.mark.parametrize("mode", ["float64", "bfloat16", "inference", "autocast"])
def test_weights_are_loaded_in_float32(mode):
    with MODES[mode]():
        net = fa.load("synth-mobile")
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), fa.load("synth-mobile").state_dict().values(), strict=True)
    )
    assert net.dtype is torch.float32
