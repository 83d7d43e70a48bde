"""What can be measured. An entry returns rows, and raises before it times anything when its results are not equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import (
    against_peers,
    align,
    align_accuracy,
    breakdown,
    denoiser,
    depthwise,
    distributed,
    engine,
    fold,
    growth,
    guard,
    ops,
    optimisation,
    scale,
    serve_load,
    streaming,
    surrogates,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an entry is told.

    Attributes:
        data: The folder with ``lfw/`` and ``weights/``, or None.
        device: ``"cpu"`` or ``"cuda"``.
        quick: Few repeats and few images: to see that it runs, not to quote.
        only: The operations of ``ops`` and the attacks of ``peers`` and ``breakdown`` that are measured; empty for all.
        compiled: Whether ``ops`` compares with ``torch.compile``, which takes most of its time on a GPU.
    """

    data: Path | None
    device: str
    quick: bool
    only: frozenset[str] = frozenset()
    compiled: bool = True


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One benchmark.

    Attributes:
        what: One line.
        needs_data: Whether it needs real faces and weights.
        run: Measures.
        needs_gpu: Whether it measures what is on a GPU only.
        groups: Columns whose values head a table of their own.
        parts: What ``--only`` can name.
        by_name: Whether it takes so long that it runs only where it is named: ``--all`` leaves it out.
    """

    what: str
    needs_data: bool
    run: Callable[[Options], list[Row]]
    needs_gpu: bool = False
    groups: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()
    by_name: bool = False


REGISTRY: Mapping[str, Entry] = MappingProxyType(
    {
        "ops": Entry(
            what="every fused operation against plain PyTorch, torch.compile and the memory's bandwidth",
            needs_data=False,
            run=lambda o: ops.run(device=o.device, quick=o.quick, only=o.only, compiled=o.compiled),
            parts=ops.operations(),
        ),
        "align": Entry(
            what="face detection on LFW and photographs: speed, and agreement with facenet-pytorch's MTCNN",
            needs_data=True,
            run=lambda o: align.run(data=o.data, device=o.device, quick=o.quick),
        ),
        "align-accuracy": Entry(
            what="verification with faces that MTCNN finds, beside LFW's list of landmarks",
            needs_data=True,
            run=lambda o: align_accuracy.run(data=o.data, device=o.device, quick=o.quick),
            by_name=True,
        ),
        "denoiser": Entry(
            what="the shipped denoiser on noisy faces, synthetic and of LFW: PSNR",
            needs_data=False,
            run=lambda o: denoiser.run(data=o.data, quick=o.quick),
        ),
        "depthwise": Entry(
            what="depthwise convolutions and MobileFaceNet's tick: the Triton kernel against cuDNN and the bandwidth",
            needs_data=False,
            needs_gpu=True,
            run=lambda o: depthwise.run(device=o.device, quick=o.quick),
        ),
        "engine-fim": Entry(
            what="FIM-20 on LFW crops: the engine against a hand-written float32 PyTorch loop",
            needs_data=True,
            run=lambda o: engine.fim(data=o.data, device=o.device, quick=o.quick),
        ),
        "engine-overhead": Entry(
            what="what a tick costs beyond the model's own forward and backward pass",
            needs_data=False,
            run=lambda o: engine.overhead(device=o.device, quick=o.quick),
        ),
        "fold": Entry(
            what="a gradient evaluation with no batch norm folded, with those behind a layer, and with all",
            needs_data=False,
            run=lambda o: fold.run(device=o.device, quick=o.quick),
        ),
        "breakdown": Entry(
            what="where an image's time goes in the attacks of 'peers', and the gradient evaluation by itself",
            needs_data=False,
            run=lambda o: breakdown.run(data=o.data, device=o.device, quick=o.quick, only=o.only),
            groups=("network", "attack"),
            parts=breakdown.ATTACKS,
        ),
        "guard": Entry(
            what="what a guard adds to the bare model, at batch 1 and 32, against the same by hand with hooks",
            needs_data=False,
            run=lambda o: guard.run(device=o.device, quick=o.quick),
        ),
        "serve": Entry(
            what="load on 'fastadv serve' from the same machine: 1, 8 and 32 clients, 512 in overload, and 32 after it",
            needs_data=False,
            run=lambda o: serve_load.run(quick=o.quick),
        ),
        "surrogates": Entry(
            what="a DFANet tick: fused masks against none, dropout and stored masks; and what an ensemble costs",
            needs_data=False,
            run=lambda o: [
                *surrogates.masks(data=o.data, device=o.device, quick=o.quick),
                *surrogates.ensemble(data=o.data, device=o.device, quick=o.quick),
            ],
        ),
        "lbfgsb": Entry(
            what="DF, kNN-guided DF and L-BFGS on LFW crops: in slots, against SciPy's L-BFGS-B an image",
            needs_data=True,
            run=lambda o: optimisation.lbfgsb(data=o.data, device=o.device, quick=o.quick),
        ),
        "growth": Entry(
            what="the cost of an image against the number of images, slots, their size, classes and templates",
            needs_data=False,
            run=lambda o: growth.growth(device=o.device, quick=o.quick),
            groups=("axis",),
        ),
        "streaming": Entry(
            what="a run of the command over 100,000 images that stops at success: its memory, and where its time goes",
            needs_data=False,
            run=lambda o: streaming.stream(device=o.device, quick=o.quick),
            by_name=True,
        ),
        "distributed": Entry(
            what="'fastadv attack --ray' against the direct run, both in the steady state: images/s, at equal bytes",
            needs_data=False,
            run=lambda o: distributed.run(quick=o.quick),
            by_name=True,
        ),
        "scale": Entry(
            what="attacks on 10^9 faces on paper: costs of an image, what saturates first, slow and failing workers",
            needs_data=False,
            run=lambda o: scale.scale(data=o.data, quick=o.quick),
            groups=("part",),
            by_name=True,
        ),
        "peers": Entry(
            what="attacks against torchattacks, Foolbox, ART, adv-lib, rai-toolbox, SciPy and a plain PyTorch loop",
            needs_data=False,
            run=lambda o: against_peers.run_all(data=o.data, device=o.device, quick=o.quick, only=o.only),
            groups=("network", "attack"),
            parts=against_peers.attacks_compared(),
            by_name=True,
        ),
    }
)
