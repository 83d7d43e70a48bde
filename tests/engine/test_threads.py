"""Attacks beside other threads: nothing fails, and every result is that of one thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from small import ResidualBlock
from torch import Tensor, nn

import fastadv as fa
from fastadv.attacks import Impersonate
from fastadv.detection import Architecture, Detector, Network, Trajectory, centroids
from fastadv.detection.guard import Guard
from fastadv.surrogates import FeatureDropout, SkipGradient, Surrogate

SIZE = (16, 16)


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def model() -> fa.FaceModel:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.PReLU(8)]
    net = nn.Sequential(
        *stem, *(ResidualBlock() for _ in range(6)), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    )
    half = (0.5, 0.5, 0.5)
    return fa.FaceModel(net, input_size=SIZE, mean=half, std=half, name="small", layers=("3", "5")).eval()


def images(seed: int) -> Tensor:
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


PLAIN = fa.attacks.pgd(eps=8 / 255, steps=2)
RECIPES = {
    "plain": PLAIN,
    "surrogate": replace(
        fa.attacks.fim(eps=8 / 255, steps=2),
        surrogate=Surrogate(skip=SkipGradient(gamma=0.5), dropout=FeatureDropout(rate=0.1)),
    ),
}


def attack(victim: fa.FaceModel, seed: int, recipe: Any = PLAIN) -> Tensor:
    goal = Impersonate(images(seed + 100), threshold=0.999)
    return fa.run(recipe, goal, victim, images(seed), seed=seed).images


def beside(work: Callable[[], Any], other: Callable[[], Any], *, least: int = 20) -> tuple[Any, list[Any]]:
    """What `work` gives while another thread repeats something, and all that this gave, at least some times."""
    done, begun, seen = threading.Event(), threading.Event(), []

    def repeat() -> None:
        while not done.is_set() or len(seen) < least:
            seen.append(other())
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        begun.wait(60)
        try:
            made = work()
        finally:
            done.set()
        repeating.result()
    return made, seen


@pytest.mark.parametrize("first", RECIPES)
def test_two_attacks_on_one_model(first: str) -> None:
    victim = model()
    work = [lambda k=k, r=r: attack(victim, k, r) for k, r in enumerate((RECIPES[first], RECIPES["surrogate"]) * 3)]
    expected = [function() for function in work]
    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(function) for function in work]]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert (expected[0] - images(0)).abs().max() > 1 / 255


@pytest.mark.parametrize("recipe", RECIPES)
def test_beside_an_innocent_network(recipe: str) -> None:
    victim, x = model(), torch.rand(1, 8)
    bystander = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    expected, output = attack(victim, 1, RECIPES[recipe]), bystander(x)
    found, seen = beside(lambda: [attack(victim, 1, RECIPES[recipe]) for _ in range(3)], lambda: bystander(x))
    assert all(torch.equal(expected, other) for other in found)
    assert all(torch.equal(output, other) for other in seen)


def jobs(seed: int) -> list[fa.Job]:
    goal, x = Impersonate(images(seed + 100), threshold=0.999), images(seed)
    return [fa.Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in range(len(x))]


@pytest.mark.parametrize("engine", [fa.Engine(slots=1, batch=1), fa.Engine(slots=2, batch=2, precision="bf16")])
def test_two_streams_in_turn_in_one_thread(engine: fa.Engine) -> None:
    victim, other = model(), fa.Engine(slots=2, batch=1)
    kinds = [(RECIPES["plain"], 1, engine), (RECIPES["surrogate"], 2, other)]

    def stream(recipe: Any, seed: int, how: fa.Engine) -> Iterator[fa.Result]:
        return fa.stream_jobs(recipe, jobs(seed), victim, seed=seed, engine=how)

    expected = [{r.name: r.image for r in stream(*kind)} for kind in kinds]
    pairs = list(zip(*(stream(*kind) for kind in kinds), strict=True))
    for k, alone in enumerate(expected):
        assert len(pairs) == len(alone)
        assert all(torch.equal(pair[k].image, alone[pair[k].name]) for pair in pairs)


def test_one_stream_continued_by_other_threads() -> None:
    victim, engine = model(), fa.Engine(slots=1, batch=1)
    expected = {r.name: r.image for r in fa.stream_jobs(PLAIN, jobs(1), victim, engine=engine)}
    results = fa.stream_jobs(PLAIN, jobs(1), victim, engine=engine)
    found = []
    for _ in expected:
        with ThreadPoolExecutor(1) as pool:  # a thread for each result
            found.append(pool.submit(next, results).result())
    assert next(results, None) is None
    assert all(torch.equal(r.image, expected[r.name]) for r in found)


def test_one_stream_taken_by_two_threads_at_once_is_refused_and_goes_on() -> None:
    victim, inside, go = model(), threading.Event(), threading.Event()

    def slow() -> Iterator[fa.Job]:
        for job in jobs(1):
            yield job
            inside.set()
            go.wait(60)

    results = fa.stream_jobs(PLAIN, slow(), victim, engine=fa.Engine(slots=2, batch=2))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, results)
        assert inside.wait(60)
        with pytest.raises(ValueError, match="generator already executing"):
            next(results)
        go.set()
        assert len([first.result(), *results]) == 3


@pytest.mark.slow
def test_two_attacks_in_two_threads_many_times(rounds: int) -> None:
    """Ten rounds, times `FASTADV_ROUNDS`."""
    victim, kinds = model(), list(RECIPES.values())
    expected = [attack(victim, k, recipe) for k, recipe in enumerate(kinds)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10 * rounds):
            for future, alone in zip(
                [pool.submit(attack, victim, *k) for k in enumerate(kinds)], expected, strict=True
            ):
                assert torch.equal(future.result(), alone)


def test_beside_a_guard_of_the_same_model() -> None:
    victim = model()
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(8) % 4
    features = [torch.rand(8, 8, generator=draw) for _ in victim.layers]
    kinds = centroids([(features, labels)], layers=victim.layers, classes=("ada", "bob", "cyd", "dan"), model="small")
    net = Network(Architecture(kind="mlp", layers=2, width=4, hidden=6)).eval().requires_grad_(False)
    detector = Detector(trajectory=Trajectory(representatives=kinds, metric="l2"), network=net)
    guard = Guard(model=victim, detector=detector, threshold=0.0)
    x = images(7)
    expected, scores = attack(victim, 1), guard(x).scores
    found, seen = beside(lambda: [attack(victim, 1) for _ in range(3)], lambda: guard(x).scores)
    assert all(torch.equal(expected, other) for other in found)
    assert all(torch.equal(scores, other) for other in seen)


def test_beside_a_compiled_network_and_its_compilation() -> None:
    victim, x = model(), torch.rand(2, 8)
    bystander = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    expected, output = attack(victim, 1), bystander(x)

    def compiled() -> Tensor:
        torch.compiler.reset()
        return torch.compile(bystander, backend="eager")(x)

    found, seen = beside(lambda: [attack(victim, 1) for _ in range(3)], compiled, least=2)
    assert all(torch.equal(expected, other) for other in found)
    assert all(torch.equal(output, other) for other in seen)


def test_models_loaded_beside_each_other_and_beside_random_numbers() -> None:
    def load(seed: int) -> Tensor:
        state = fa.load("synth-vgg", random_weights_seed=seed).state_dict()
        return torch.cat([value.flatten().double() for value in state.values()])

    expected = [load(seed) for seed in range(2)]
    torch.manual_seed(11)
    numbers = torch.rand(2000)
    torch.manual_seed(11)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(load, seed) for seed in (0, 1) * 4]
        drawn = torch.cat([torch.rand(1) for _ in range(2000)])
        found = [job.result() for job in jobs]
    assert all(torch.equal(expected[k % 2], weights) for k, weights in enumerate(found))
    assert torch.equal(drawn, numbers)


def test_a_model_that_is_trained_on_while_it_is_attacked() -> None:
    victim, engine = model(), fa.Engine(slots=1, batch=1)
    expected = {r.name: r.image for r in fa.stream_jobs(PLAIN, jobs(1), victim, engine=engine)}
    found = {}
    for r in fa.stream_jobs(PLAIN, jobs(1), victim, engine=engine):
        found[r.name] = r.image
        with torch.no_grad():
            for parameter in victim.parameters():
                parameter.mul_(1.5)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
