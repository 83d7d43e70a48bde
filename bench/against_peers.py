"""The engine against other libraries: the same network, faces, steps, budget and start for all."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.measure import peak, reset_peak, synchronise
from bench.optimisation import lfw_faces, several_images
from bench.peers import adv_lib, art, compat, compiled, counting, foolbox, plain, rai_toolbox, scipy, torchattacks
from bench.peers.calls import Call, Given, Network
from bench.peers.evaluation import evaluate, rounded
from bench.peers.lost import Outcome, lost
from bench.peers.tasks import InFloat, Task, best_precisions, few_classes, large_network, tasks
from fastadv import Recipe, load
from fastadv.data import LFW, render_faces
from fastadv.engine import Engine, run
from fastadv.models import FaceModel

PEERS: tuple[ModuleType, ...] = (plain, compiled, torchattacks, foolbox, art, adv_lib, rai_toolbox, scipy, compat)
IDENTITIES, FEW, SYNTHETIC = 158, 10, 16
BATCHES = {"cpu": (8, 16, 32), "cuda": (64, 128, 256)}
LARGE = {"cpu": 24, "cuda": 256}  # faces of the large network
ROUNDS, LARGE_ROUNDS = 8, 3
LARGE_BATCH = {"cpu": 8, "cuda": 64}  # at most, there
WHOLE_ROUNDS = {"cpu": 3, "cuda": 8}  # of runs that take all faces in each
MAXIMUM = 256

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Faces, and a network that identifies them."""

    name: str
    model: FaceModel
    given: Given


@dataclass(kw_only=True)
class Run:
    """One implementation of an attack, and its measurements.

    Attributes:
        name: Of the row.
        version: Of the library; None for fastadv.
        call: Maps images to adversarial images.
        counted: The same without a CUDA graph, whose replays no counter notices; None where ``call`` records no graph.
        owner: The class whose ``methods`` are counted.
        ours: Whether it is fastadv.
        whole: Whether every round attacks all faces, as for runs that stop at success, and for all on a GPU, where a
            part of them fills no batch.
        batch: Images per evaluation; None where the engine chooses.
    """

    name: str
    version: str | None
    call: Callable[[Given], Tensor]
    counted: Callable[[Given], Tensor] | None = None
    owner: type = FaceModel
    methods: tuple[str, ...] = ("features", "forward", "logits")
    ours: bool = False
    whole: bool = False
    batch: int | None = None
    counter: counting.Counter = field(default_factory=counting.Counter)
    operations: float | None = None
    syncs: float | None = None
    peak: float | None = None
    size: int = 0
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    found: list[Tensor] = field(default_factory=list)

    @property
    def images(self) -> int:
        """The number of faces that the run has been measured on."""
        return self.sizes[-1] if self.whole else sum(self.sizes)


def _given(model: FaceModel, x: Tensor) -> Given:
    with torch.no_grad():
        logits = torch.cat([model.logits(part) for part in x.split(16)])
    label, half = logits.argmax(1), len(x) // 2
    wanted = label.roll(half)
    wanted = torch.where(wanted == label, (label + 1) % logits.shape[1], wanted)
    return Given(x=x, label=label, wanted=wanted, target=x.roll(half, 0))


def lfw(data: Path, device: str, identities: int, count: int) -> Faces:
    """MobileFaceNet with one class per identity, and faces of these people that no template was built from."""
    model = lfw_faces(data, device, identities, 1).model
    source = LFW(data / "lfw")
    people = several_images(source)[:identities]
    others = [name for names in people for name in (names[0], *names[3:])]  # templates are of the second and third
    chosen = [others[i * len(others) // count] for i in range(count)]
    x = torch.stack([source.load(name).image for name in chosen]).to(device)
    return Faces(name=f"mobilefacenet, {identities} classes", model=model, given=_given(model, x))


def synthetic(device: str, count: int) -> Faces:
    """A network that ships with fastadv, on synthetic faces: for machines without LFW."""
    model = load("synth-vgg", device=device).eval()
    assert isinstance(model.head, nn.Linear)
    head = nn.Linear(model.head.in_features, SYNTHETIC).to(device)
    head.weight.data, head.bias.data = model.head.weight.data[:SYNTHETIC], model.head.bias.data[:SYNTHETIC]
    model.head = head.eval()
    x = render_faces([i % SYNTHETIC for i in range(count)], [i // SYNTHETIC for i in range(count)], seed=3).images.to(
        device
    )
    return Faces(name=f"synth-vgg, {SYNTHETIC} classes, synthetic faces", model=model, given=_given(model, x))


def random_weights(device: str, x: Tensor) -> Faces:
    """IR-ResNet-50, untrained."""
    model = load("iresnet50", random_weights_seed=0, device=device)
    torch.manual_seed(0)
    model.head = nn.Linear(512, IDENTITIES).to(device)
    return Faces(name="iresnet50, random weights", model=model.eval(), given=_given(model, x))


def _by_peer(call: Call, network: Network, task: Task, batch: int, given: Given) -> Tensor:
    found = []
    for part in given.split(batch):
        found.append(call(network, part, task.setting).detach().cpu())
        network.zero_grad(set_to_none=True)
    return torch.cat(found)


def _by_engine(recipe: Recipe, task: Task, model: FaceModel, engine: Engine, given: Given) -> Tensor:
    used = replace(recipe, attack=InFloat(recipe.attack)) if task.minimal else recipe
    return run(used, task.goal_for(given), model, given.x, engine=engine).images


def runs_of(task: Task, faces: Faces, device: str, batch: int, quick: bool) -> list[Run]:
    """The peers that have the attack and can be imported, then the engine's."""
    trained = copy.deepcopy(faces.model).requires_grad_(True)  # as a user passes it to a library
    frozen = copy.deepcopy(faces.model).requires_grad_(False)
    found = []
    for peer in PEERS:
        if task.name not in peer.ATTACKS or peer.NAME in task.skip:
            continue
        why = "left out of quick runs" if quick and peer is compiled else peer.missing()
        if why:
            print(f"{task.name}: without {peer.NAME}: {why}")
            continue
        kind = compiled.CompiledNetwork if peer is compiled else Network
        network = kind(frozen if peer in (plain, compiled) else trained, task.output).eval()
        call = partial(_by_peer, peer.ATTACKS[task.name], network, task, batch)
        one = Run(
            name=peer.NAME, version=peer.version(), call=call, batch=batch, ours=peer is compat, whole=device != "cpu"
        )
        if peer is compiled:
            one.owner, one.methods = compiled.CompiledNetwork, ("forward",)
        found.append(one)
    for label, attack in task.ours.items():
        for precision in best_precisions(device):
            if precision and label and not label.startswith("stop"):
                continue  # variants are measured in the default precision only
            engine = Engine(precision=precision) if precision else Engine()
            exact = task.precise(attack, precision) if precision else attack
            one = Run(
                name=", ".join(part for part in ("fastadv", precision, label) if part),
                version=None,
                call=partial(_by_engine, exact, task, faces.model, engine),
                ours=True,
                whole=label == "stop at success" or device != "cpu",
            )
            if device.startswith("cuda"):
                one.counted = partial(
                    _by_engine, exact, task, faces.model, Engine(precision=engine.precision, capture=False)
                )
            found.append(one)
    return found


def _warm_up(one: Run, task: Task, faces: Faces, device: str) -> None:
    """Attack two images: PyTorch chooses kernels, operations outside of the network are counted, slow runs noted."""
    first = faces.given[: one.batch if one.owner is not FaceModel else 2]
    counter = counting.Counter()
    begin = time.perf_counter()
    with counter.watching(one.owner, *one.methods):
        if one.owner is FaceModel:
            with counting.Outside(counter) as outside, outside.reads:
                (one.counted or one.call)(first)
            one.operations, one.syncs = outside.per_tick()
        else:
            one.call(first)
    if one.counted is not None:  # the counts per image of one chunk are used for all
        with one.counter.watching(one.owner, *one.methods):
            one.counted(faces.given[: task.chunk])
        one.counter.per_image(task.chunk)
        one.call(first)
    synchronise(device)
    one.size = len(faces.given.x) if one.whole else task.chunk
    if one.ours or (time.perf_counter() - begin) / len(first) * one.size < task.seconds:
        return
    begin = time.perf_counter()
    one.call(first)
    synchronise(device)
    fits = int(task.seconds * len(first) / (time.perf_counter() - begin))
    one.size = min(one.size, max(2, fits))


def _measure(runs: Sequence[Run], task: Task, faces: Faces, device: str, rounds: int) -> None:
    """Time the runs in turns, so that a drift of the machine affects all alike; each round has other faces."""
    given = faces.given
    for k in range(rounds):
        for one in runs:
            done = 0 if one.whole else one.images if one.sizes else 0
            part = given[done : done + one.size]
            late = one.seconds and sum(one.seconds) + one.seconds[-1] > task.seconds
            if not len(part) or late or (one.whole and k >= WHOLE_ROUNDS[device.split(":")[0]]):
                continue
            torch.manual_seed(k)
            before = reset_peak(device) if k == 0 else None
            counter = one.counter if one.counted is None else counting.Counter()
            with counter.watching(one.owner, *one.methods):
                synchronise(device)
                begin = time.perf_counter()
                made = one.call(part)
                synchronise(device)
                spent = time.perf_counter() - begin
            if k == 0:
                one.peak = peak(device, before)
            one.seconds.append(spent)
            one.sizes.append(len(part))
            one.found = [made] if one.whole else [*one.found, made]


def interval(rates: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % percentile interval from a bootstrap over rounds: (median, low, high)."""
    drawn = np.random.default_rng(0).integers(len(rates), size=(2000, len(rates)))
    low, high = np.quantile(np.median(np.asarray(rates)[drawn], axis=1), (0.025, 0.975))
    return float(np.median(rates)), float(low), float(high)


def _row(one: Run, task: Task, faces: Faces) -> tuple[dict[str, Any], Outcome]:
    part = faces.given[: one.images]
    made = torch.cat(one.found)
    outward = one.ours and task.minimal
    success, norm = evaluate(task, faces.model, part, rounded(made, part.x, outward=outward))
    raw = evaluate(task, faces.model, part, made)[0] if task.minimal else None
    rate, low, high = interval([n / s for n, s in zip(one.sizes, one.seconds, strict=True)])
    share = sum(one.sizes) if one.counted is None else 1
    row = {
        "network": faces.name,
        "attack": task.title,
        "run": one.name,
        "version": one.version,
        "images": one.images,
        "rounds": len(one.sizes),
        "batch": one.batch,
        "images_per_s": rate,
        "low": low,
        "high": high,
        "forwards_per_image": one.counter.forwards / share,
        "backwards_per_image": one.counter.backwards / share,
        "operations_per_tick": one.operations,
        "syncs_per_tick": one.syncs,
        "peak_mib": one.peak,
        "success": float(success.mean()),
        "success_float": None if raw is None else float(raw.mean()),
        "norm": "L2" if task.by_length else "Linf, grey levels",
        "median_norm": float(np.median(norm[success])) if success.any() else None,
    }
    return row, Outcome(success=success, norm=norm)


def compare(task: Task, faces: Faces, device: str, *, rounds: int, batch: int, quick: bool, judged: bool) -> list[Row]:
    """Run one attack in all implementations; without ``judged``, success is not compared and ``lost`` is None."""
    usable = []
    runs = runs_of(task, faces, device, batch, quick)
    begin = time.perf_counter()
    for one in runs:
        try:
            _warm_up(one, task, faces, device)
            usable.append(one)
        except Exception as error:  # raised by a library: compare the others without it
            if one.ours:
                raise
            print(f"{task.name}: without {one.name}: {type(error).__name__}: {str(error)[:200]}")
    _measure(usable, task, faces, device, rounds)
    rows, outcomes = zip(*(_row(one, task, faces) for one in usable), strict=True)
    verdicts: Sequence[bool | None] = lost(outcomes, minimal=task.minimal) if judged else [None] * len(rows)
    theirs = [(row, v) for row, v, one in zip(rows, verdicts, usable, strict=True) if not one.ours]
    # where all peers lost (by rounding, as a rule), the fastest of them
    rates = [row["images_per_s"] for row, v in theirs if not v] or [row["images_per_s"] for row, _ in theirs]
    print(f"{task.title} on {faces.name}: {len(rows)} runs in {time.perf_counter() - begin:.0f} s", flush=True)
    found = []
    for row, verdict in zip(rows, verdicts, strict=True):
        ratio = row["images_per_s"] / max(rates) if rates else None
        success = {} if judged else {"success": None, "success_float": None}
        found.append({**row, **success, "times_fastest_peer": ratio, "lost": verdict})
    return found


def best_batch(faces: Faces, device: str, quick: bool) -> int:
    """The batch size at which BIM in a plain PyTorch loop takes the least time per image; the libraries use it."""
    if quick:
        return 4
    network = Network(copy.deepcopy(faces.model).requires_grad_(False)).eval()
    task = tasks(quick=False)[0]
    spent: dict[int, float] = {}
    for _ in range(3):
        for batch in BATCHES[device.split(":")[0]]:
            part = faces.given[:batch]
            synchronise(device)
            begin = time.perf_counter()
            plain.bim(network, part, task.setting)
            synchronise(device)
            spent[batch] = min(spent.get(batch, float("inf")), (time.perf_counter() - begin) / len(part))
    return min(spent, key=spent.__getitem__)


def attacks_compared() -> frozenset[str]:
    """The attacks that are compared."""
    return frozenset(task.name for task in (*tasks(quick=True), *few_classes(), *large_network(quick=True)))


def run_all(*, data: Path | None, device: str, quick: bool, only: Collection[str] = ()) -> list[Row]:
    """One row per run: images per second, passes per image, cost outside of the network, memory, success, norms.

    With ``only`` of these attacks alone.
    """
    kind = device.split(":")[0]

    def chosen(all_tasks: list[Task]) -> list[Task]:
        return [task for task in all_tasks if not only or task.name in only]

    rounds, large_rounds = (1, 1) if quick else (ROUNDS, LARGE_ROUNDS)
    count = 4 if quick else MAXIMUM
    found: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, and of the engine on faces already at the goal
        main = synthetic(device, count) if data is None else lfw(data, device, IDENTITIES, count)
        if data is None:
            print("peers: without --data the network is synth-vgg, on synthetic faces")
        batch = best_batch(main, device, quick)
        for task in chosen(tasks(quick)):
            found += compare(task, main, device, rounds=rounds, batch=batch, quick=quick, judged=True)
        if data is not None:
            for task in chosen(few_classes()):
                few = lfw(data, device, FEW, 4 if quick else 64)
                found += compare(task, few, device, rounds=rounds, batch=batch, quick=quick, judged=True)
            large, batch = random_weights(device, main.given.x[: LARGE[kind]]), min(batch, LARGE_BATCH[kind])
            for task in chosen(large_network(quick)):
                found += compare(task, large, device, rounds=large_rounds, batch=batch, quick=quick, judged=False)
    return found
