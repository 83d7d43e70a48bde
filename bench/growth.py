"""How the cost per image grows with the number of images, slots, pixels, classes and gallery templates."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measure import peak, reset_peak
from fastadv import Gallery, GalleryClass, Goal, Misclassify, Recipe, attacks, keep_freed_memory, run, wrap
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import FaceModel, load

_BASE = "synth-mobile"
_DRAWN = 64  # distinct images; a stream repeats them, so that generating them costs no time
_ROUNDS = 3

Work = Callable[[], int]  # how many images were attacked


def _recipe() -> Recipe:
    return attacks.bim(eps=8 / 255, steps=2)


def _images(size: int, device: str) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (_DRAWN, 3, size, size), generator=draw).float().div(255).to(device)


def _classifier(classes: int, size: int, device: str) -> FaceModel:
    model = load(_BASE, device=device)
    if size != model.input_size[0]:
        width = model.embedding_size
        backbone = nn.Sequential(nn.AdaptiveAvgPool2d(model.input_size), model.backbone, nn.Linear(width, classes))
        return wrap(backbone.to(device), input_size=size, mean=0.5, std=0.5)
    torch.manual_seed(0)
    return model.replace(head=nn.Linear(model.embedding_size, classes).to(device)).eval()


def _away(model: FaceModel, images: Tensor) -> Misclassify:
    with torch.no_grad():
        return Misclassify(model.logits(images).argmax(1))


def _jobs(goal: Goal, images: Tensor, count: int) -> Iterator[Job]:
    for i in range(count):
        yield Job(name=str(i), id=i, image=images[i % _DRAWN], goal=goal.row(i % _DRAWN))


def _stream(model: FaceModel, goal: Goal, images: Tensor, count: int, engine: Engine) -> int:
    return sum(1 for _ in stream_jobs(_recipe(), _jobs(goal, images, count), model, engine=engine))


def _in_memory(model: FaceModel, goal: Misclassify, images: Tensor, count: int) -> int:
    many = images.repeat(-(-count // _DRAWN), 1, 1, 1)[:count]
    labels = goal.labels.repeat(-(-count // _DRAWN))[:count]
    return len(run(_recipe(), Misclassify(labels), model, many))


def _works(device: str, quick: bool) -> Iterator[tuple[str, int, Work]]:
    """The quantity that grows, its value, and a function that runs the attack and returns the number of images."""
    images, model = _images(112, device), _classifier(100, 112, device)
    goal = _away(model, images)
    _stream(model, goal, images, _DRAWN, Engine())  # warm
    some = 64 if quick else 512
    for count in (64, 128) if quick else (100, 1_000, 10_000, 100_000):
        yield "images in a stream", count, partial(_stream, model, goal, images, count, Engine())
    for count in (64, 128) if quick else (128, 512, 2_048, 8_192):
        yield "images in memory", count, partial(_in_memory, model, goal, images, count)
    for slots in (16, 32) if quick else (16, 32, 64, 128, 256):
        yield "slots", slots, partial(_stream, model, goal, images, some, Engine(slots=slots, batch=16))
    for size in (112, 224) if quick else (112, 144, 176, 224):
        larger = _classifier(100, size, device)
        drawn = _images(size, device)
        yield "image size", size, partial(_stream, larger, _away(larger, drawn), drawn, some, Engine())
    for classes in (10, 1_000) if quick else (10, 100, 1_000, 10_000, 100_000):
        wide = _classifier(classes, 112, device)
        yield "classes", classes, partial(_stream, wide, _away(wide, images), images, some, Engine())
    for people in (10, 1_000) if quick else (10, 100, 1_000, 10_000, 100_000):
        gallery = _gallery(people, model.embedding_size, device)
        away = GalleryClass(gallery=gallery, labels=torch.arange(_DRAWN) % min(people, 100))
        yield "templates", people, partial(_stream, model, away, images, some, Engine())


def _gallery(people: int, width: int, device: str) -> Gallery:
    draw = torch.Generator().manual_seed(0)
    templates = F.normalize(torch.randn(people, width, generator=draw)).to(device)
    return Gallery(templates=templates, classes=torch.arange(people, device=device))


def growth(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Milliseconds per image in the fastest round, page faults per image in the last, peak of memory in the first.

    The peak is the growth of resident memory on a CPU, of PyTorch's allocations on CUDA. Memory that earlier rows freed
    is returned to the system before the first round, so that what is used again counts again: in a row of one round the
    page faults are those of memory that is new to the process, too.
    """
    keep_freed_memory()  # as the commands do
    rows: list[Mapping[str, Any]] = []
    for axis, value, work in _works(device, quick):
        times, faults, count, most = [], 0, 0, None
        once = quick or (axis == "images in a stream" and value >= 100_000)
        for k in range(1 if once else _ROUNDS):
            before = None if k else reset_peak(device)
            faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            begin = time.perf_counter()
            count = work()
            times.append(time.perf_counter() - begin)
            faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            most = most if k else peak(device, before)
        rows.append(
            {
                "axis": axis,
                "value": value,
                "images": count,
                "ms_per_image": 1e3 * min(times) / count,
                "images_per_s": count / min(times),
                "page_faults_per_image": faults / count,
                "peak_mib": most,
            }
        )
    return rows
