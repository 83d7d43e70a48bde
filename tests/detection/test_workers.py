"""Guards, models and attacks in other processes: pickled, they give the same bits there."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

import fastadv as fa
from fastadv import attacks
from fastadv.defences.evade_detector import WatchedModel
from fastadv.detection import Architecture, Detector, Guard, LayerTap, Network, Trajectory, Verdicts, centroids
from fastadv.models import FaceModel, prepare

X = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(2))
FIELDS = ("embeddings", "scores", "flagged")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker of a DataLoader: bits hang on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return fa.load("synth-mobile")  # a worker finds its class in the package


@pytest.fixture(scope="module", params=["mlp", "lstm"])
def guard(model, request) -> Guard:
    tap = LayerTap(model=model)
    with torch.no_grad():
        values = tap(torch.rand(8, 3, 112, 112, generator=torch.Generator().manual_seed(1))).values
    kinds = centroids([(values, torch.arange(8) % 2)], layers=tap.names, classes=("ada", "bob"), model=model.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Network(Architecture(kind=request.param, layers=len(tap.names), width=2, hidden=6))
    trajectory = Trajectory(representatives=kinds, metric="l2")
    detector = Detector(trajectory=trajectory, network=net.eval().requires_grad_(False))
    return Guard(model=model, detector=detector, threshold=0.1, sizes=(1, 4))


def same(one: Verdicts, other: Verdicts) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@pytest.mark.parametrize("again", [lambda v: pickle.loads(pickle.dumps(v)), copy.deepcopy, copy.copy])
def test_copies_give_the_same_bits(guard, model, again):
    made = again(guard)
    assert same(made(X), guard(X))
    if guard.detector.network.architecture.kind == "lstm":
        return
    assert (made.threshold, made.precision, made.capture, made.sizes) == (0.1, "fp32", False, (1, 4))
    assert made is not guard
    with torch.no_grad():
        for each in (model, prepare(model), prepare(model, precision="bf16"), WatchedModel(model, guard.detector)):
            assert torch.equal(again(each)(X), each(X))
    assert not any(module._forward_hooks for module in model.modules())


def test_images_that_require_a_gradient_are_read_and_left_alone(guard):
    leaf = X.clone().requires_grad_()
    images = leaf * 1.0
    assert same(guard(images), guard(X))
    assert not guard(images).scores.requires_grad
    images.sum().backward()  # the caller's graph is whole
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_a_copy_has_a_model_of_its_own(guard):
    made = copy.deepcopy(guard)
    expected = guard(X)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    assert same(guard(X), expected)
    assert same(made(X), expected)  # a guard keeps the weights that it was built of


def test_in_a_worker_of_a_data_loader(guard):
    if guard.detector.network.architecture.kind != "mlp":
        pytest.skip("one process is enough")
    batches, expected = [X, X[:2]], [guard(X), guard(X[:2])]
    loader = DataLoader(batches, batch_size=None, collate_fn=guard, num_workers=1, multiprocessing_context="spawn")
    assert [same(made, each) for made, each in zip(loader, expected, strict=True)] == [True, True]
    assert same(guard(X), expected[0])  # its tensors are in shared memory now


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_in_a_process_of_its_own(guard, model, method):
    goal = fa.Impersonate(X[1:4], threshold=0.99)
    attack = attacks.pgd(steps=2)
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        assert same(pool.submit(guard, X).result(), guard(X))
        made = pool.submit(fa.run, attack, goal, model, X[:3], seed=4).result()
    assert torch.equal(made.images, fa.run(attack, goal, model, X[:3], seed=4).images)


def test_attacks_goals_and_engines_are_pickled(model):
    for name, entry in attacks.CATALOG.items():
        made = attacks.by_name(name, **({"others": [model]} if entry.ensemble else {}))
        again = pickle.loads(pickle.dumps(made))
        assert entry.ensemble or again == made
    job = pickle.loads(pickle.dumps(fa.Job(name="a", id=3, image=X[0], goal=fa.Impersonate(X[:1], threshold=0.5))))
    assert torch.equal(job.goal.targets, X[:1])
    assert pickle.loads(pickle.dumps(fa.Engine(batch=4))) == fa.Engine(batch=4)
