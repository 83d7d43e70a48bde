"""Where the time of one image goes in the attacks of ``bench peers``, and what a gradient evaluation costs by itself.

The ratio to a plain loop cannot exceed the ratio of their gradient evaluations by more than what the engine saves
elsewhere: the rows show both, so that a missed aim is seen to lie in the network or in the engine.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.against_peers import IDENTITIES, LARGE, MAXIMUM, Faces, lfw, random_weights, synthetic
from bench.measure import timed
from bench.peers.calls import Network
from bench.peers.tasks import Task, best_precisions, large_network, tasks
from fastadv import Recipe, keep_freed_memory
from fastadv.core.spent import Spent
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import FaceModel, prepare

Row = Mapping[str, Any]
ATTACKS = frozenset({"pgd", "mi-fgsm", "cw-l2", "deepfool"})
_PARTS = ("steps", "evaluation", "preparation")
_KINDS = ("convolutions, forward", "convolutions, backward", "the rest")
_BY_HAND = 8  # images of a batch of the plain loop; ``bench peers`` finds the same


def _attacked(task: Task, recipe: Recipe, faces: Faces, engine: Engine, count: int) -> tuple[float, Spent, float]:
    """Seconds of a run, those of its parts, and the mean number of gradient evaluations."""
    given = faces.given[:count]
    goal = task.goal_for(given)
    jobs = (Job(name=str(i), id=i, image=given.x[i], goal=goal.row(i)) for i in range(len(given)))
    spent, begin = Spent(), time.perf_counter()
    found = [result.ticks for result in stream_jobs(recipe, jobs, faces.model, engine=engine, spent=spent)]
    return time.perf_counter() - begin, spent, statistics.mean(found)


def _passes(model: FaceModel, output: str, x: torch.Tensor) -> Callable[[], None]:
    network = Network(model, output).eval()

    def both() -> None:
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(network(leaf).sum(), leaf)

    return both


def _kinds(call: Callable[[], None], device: str) -> dict[str, float]:
    """The share of time of the kinds of operations of a gradient evaluation, on the device."""
    activity, spent_by = ProfilerActivity.CPU, "self_cpu_time_total"
    if device.startswith("cuda"):
        activity, spent_by = ProfilerActivity.CUDA, "self_device_time_total"
    with profile(activities=[activity]) as seen:
        for _ in range(5):
            call()
    spent = dict.fromkeys(_KINDS, 0.0)
    for event in seen.key_averages():
        convolution, backward = "conv" in event.key.lower(), "backward" in event.key.lower()
        kind = _KINDS[int(backward)] if convolution else _KINDS[2]
        spent[kind] += getattr(event, spent_by)
    total = sum(spent.values())
    return {kind: each / total for kind, each in spent.items()}


def _gradients(faces: Faces, output: str, engine: Engine, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds an image of a gradient evaluation, of the prepared network and by hand; the kinds of the first."""
    resolved = engine.resolve(faces.model)
    batch = min(resolved.batch or _BY_HAND, len(faces.given))
    ours = prepare(faces.model, precision=resolved.precision or "fp32", channels_last=resolved.channels_last)
    layout = torch.channels_last if resolved.channels_last else torch.contiguous_format
    many, few = faces.given.x[:batch].contiguous(memory_format=layout), faces.given.x[:_BY_HAND]
    plain = copy.deepcopy(faces.model).requires_grad_(False)
    calls = {"ours": (_passes(ours, output, many), len(many)), "by hand": (_passes(plain, output, few), len(few))}
    each = {name: 1e3 * timed([call], device, seconds=3.0).median / images for name, (call, images) in calls.items()}
    return each, _kinds(calls["ours"][0], device)


def _rows(task: Task, faces: Faces, device: str, *, rounds: int) -> list[Row]:
    precision = best_precisions(device)[-1]
    engine = Engine(precision=precision) if precision else Engine()
    few = min(len(faces.given), task.chunk)
    each, kinds = _gradients(faces, task.output, engine.resolve(faces.model, images=few), device)
    rows: list[Row] = []
    for label, recipe in task.ours.items():
        count = len(faces.given) if label == "stop at success" else few  # as the comparison does
        used = task.precise(recipe, precision) if precision else recipe
        settled = engine.resolve(faces.model, images=count)
        _attacked(task, used, faces, settled, min(4, count))  # PyTorch chooses kernels
        seconds, shares = [], []
        for _ in range(rounds):
            passed, spent, ticks = _attacked(task, used, faces, settled, count)
            seconds.append(passed)
            shares.append({part: spent.seconds[part] / passed for part in _PARTS})
        share = {part: statistics.median(one[part] for one in shares) for part in _PARTS}
        middle = statistics.median(seconds)
        rows.append(
            {
                "network": faces.name,
                "attack": task.title,
                "run": ", ".join(part for part in (precision, label) if part),
                "images": count,
                "rounds": rounds,
                "ms_an_image": 1e3 * middle / count,
                "evaluations": ticks,
                **{f"share_{part}": value for part, value in share.items()},
                "share_rest": 1.0 - sum(share.values()),
                "step_ms": 1e3 * middle * share["steps"] / (count * ticks),
                "gradient_ms": each["ours"],
                "gradient_by_hand_ms": each["by hand"],
                "ratio_of_gradients": each["by hand"] / each["ours"],
                **{f"share_{kind}": value for kind, value in kinds.items()},
            }
        )
    return rows


def run(*, data: Path | None, device: str, quick: bool, only: Collection[str] = ()) -> list[Row]:
    """One row a run: milliseconds an image, the shares of its parts, a step and a gradient evaluation by themselves."""
    keep_freed_memory()  # as commands do: else what is measured first pays for its pages
    count, rounds = (4, 1) if quick else (MAXIMUM, 5)
    chosen = only or ATTACKS
    found: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the engine on faces already at the goal
        main = synthetic(device, count) if data is None else lfw(data, device, IDENTITIES, count)
        for task in tasks(quick):
            if task.name in chosen:
                found += _rows(task, main, device, rounds=rounds)
        if data is not None and "pgd" in chosen:
            large, task = random_weights(device, main.given.x[: LARGE[device.split(":")[0]]]), large_network(quick)[0]
            found += _rows(task, large, device, rounds=rounds)
    return found
