"""A call of every command that writes, on a small set of synthetic faces: for tests that look at whole folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from run_files import content
from safetensors.torch import save_file

from fastadv.data.images import to_uint8, write_png
from fastadv.data.pairs import Pair, write_pairs_csv
from fastadv.data.synthetic import render_faces
from fastadv.models import load

PEOPLE, IMAGES = 8, 12


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the command line.

    Attributes:
        name: the name of its folder among the others.
        words: its arguments; `{faces}`, `{pairs}`, `{held}`, `{two}` are files of `write_inputs`, `{out}` is where it
            writes, and `{NAME}` is the folder of an earlier call.
        resumes: whether the same command continues a folder that it left unfinished.
        timed: patterns of files that hold measured times, and are not the same twice.
        begun: the call whose folder it begins with; none: it begins with nothing.
    """

    name: str
    words: str
    resumes: bool = True
    timed: tuple[str, ...] = ()
    begun: str = ""

    def content(self, folder: Path) -> dict[str, bytes]:
        """Every file of a folder that the call has written; of those that hold measured times, JSON without them."""
        files = content(folder)
        for name in {str(p.relative_to(folder)) for pattern in self.timed for p in folder.glob(pattern)}:
            data = files.pop(name)
            if name.endswith(".json") and not name.endswith(".hashes.json"):
                files[name] = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
        return files

    def arguments(self, inputs: Path, runs: Path) -> list[str]:
        """The words with all places filled in."""
        places = {name: str(inputs / file) for name, file in _FILES.items()}
        places |= {call.name: str(runs / call.name) for call in (*CALLS, *ON_PHOTOGRAPHS, *IN_PARTS)}
        return self.words.format_map({**places, "out": str(runs / self.name)}).split()


_TIMES = ("seconds", "cost", "images_per_second")


def _timeless(value: Any) -> Any:
    """Without measured times."""
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in _TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


_FILES = {
    "faces": "faces",
    "pairs": "pairs.csv",
    "held": "held.csv",
    "two": "two.safetensors",
    "detector": "mtcnn.safetensors",
}
_FACES = "--data {faces} --seed 3"
_NETWORK = f"{_FACES} --model synth-mobile"
_RUN = f"{_NETWORK} --batch 4 --precision fp32 --out {{out}} --json"
_FIT = (
    "--attack bim:2@0.03 --attack fgsm@0.03 --natural 6 --attacked 2 --validate 0.45 --test 0.25 --head-epochs 4"
    " --epochs 3"
)
_SEEN = "--data {faces} --model synth-mobile --json"

CALLS = (
    Call(name="impersonate", words=f"attack pgd --threshold 0.4 --eps 8/255 --steps 4 --limit 12 {_RUN}"),
    Call(
        name="evade",
        words="attack dfanet-fim --goal evade --threshold 0.4 --eps 0.03 --steps 3 --stop-at-success --limit 24"
        f" {_RUN}",
    ),
    Call(
        name="identify-as",
        words="attack m-fim --goal identify-as --gallery {faces} --neighbours 2 --eps 0.03 --steps 3 --limit 24"
        f" {_RUN}",
    ),
    Call(name="minimal", words=f"attack cw-l2 --threshold 0.4 --steps 6 --set search_steps=2 --limit 6 {_RUN}"),
    Call(name="verify", words=f"verify --attack fim --eps 0.03 --steps 3 --pairs {{pairs}} {_RUN}"),
    Call(name="clean", words=f"verify --pairs {{pairs}} {_NETWORK} --out {{out}} --json"),
    Call(
        name="identify",
        words=f"identify --attack fim --enrol 2 --goal misidentify --eps 0.03 --steps 3 --limit 12 {_RUN}",
    ),
    Call(
        name="talfw",
        words=f"talfw --attack m-fim --threshold 0.4 --eps 0.03 --steps 3 --pairs {{pairs}} {_RUN}",
    ),
    Call(
        name="transfer",
        words=f"transfer {_FACES} --network synth-mobile --network synth-vgg --surrogate synth-mobile --method fim"
        " --method dfanet-fim:4 --verification {pairs} --pairs 6 --images 4 --far 0.2 --eps 0.03 --steps 4 --at 2"
        " --batch 4 --precision fp32 --out {out} --json",
    ),
    Call(
        name="untargeted",
        words=f"transfer {_FACES} --network synth-mobile --network synth-vgg --surrogate synth-mobile --method fim"
        " --untargeted --verification {pairs} --pairs 4 --images 4 --far 0.2 --eps 0.03 --steps 2 --batch 4"
        " --precision fp32 --out {out} --json",
    ),
    Call(name="detect", words=f"detect fit {_FIT} {_RUN}"),
    Call(
        name="evaluate",
        words=f"detect evaluate {{detect}} --unseen mi-fgsm:3@0.03 --adaptive pgd:2@0.03 --k 5 {_SEEN}",
        resumes=False,
    ),
    Call(
        name="score",
        words=f"detect score {{detect}}/detectors/mlp-medoid-l2-relative.safetensors --eer --out {{out}}.csv {_SEEN}",
        resumes=False,
    ),
    Call(
        name="calibrate",
        words="detect calibrate {detect}/detectors/mlp-medoid-l2-relative.safetensors --false-alarm 0.1"
        f" --out {{out}}.safetensors {_SEEN}",
        resumes=False,
    ),
    Call(
        name="defend",
        words="defend --defence mean:3 --defence jpeg:75 --attack fim:3@0.03 --threat zero --threat perfect --threat"
        " adaptive --detector {detect}/detectors/mlp-medoid-l2-relative.safetensors"
        f" --pairs {{pairs}} {_RUN}",
        timed=("clean/*.npz", "defences.json", "report.html"),
    ),
    Call(
        name="train",
        words=f"train {_NETWORK} --batch 8 --epochs 2 --pairs {{held}} --out {{out}} --json",
    ),
    Call(
        name="head",
        words=f"train --head {_NETWORK} --batch 8 --epochs 3 --out {{out}} --json",
    ),
    Call(
        name="denoiser",
        words=f"train denoiser {_FACES} --width 8 --layers 4 --epochs 2 --batch 8 --out {{out}} --json",
    ),
)

_DETECTOR = "--detector-weights {detector} --least-face 60"
ON_PHOTOGRAPHS = (
    Call(name="align", words=f"align {{faces}} {_DETECTOR} --out {{out}} --json"),
    Call(name="aligned", words=f"verify --align {_DETECTOR} --attack fim --eps 0.03 --pairs {{pairs}} {_RUN}"),
)
"""Calls with a face detector, whose weights are those of `photographs.write_detector`."""


_HASHES = "**/.hashes.json"  # of images that the call itself draws anew, or of those of an earlier run besides
_PART = f"attack pgd --threshold 0.4 --eps 8/255 --steps 4 --limit 12 {_RUN}"
IN_PARTS = (
    Call(name="shard", words=f"{_PART} --shard 1/2"),
    Call(name="shards", words=f"{_PART} --shard 2/2", begun="shard"),
    Call(name="merge", words="merge {out} --json", begun="shards"),
    Call(name="workers", words=f"{_PART} --workers 2"),
    Call(name="fresh", words=f"{_PART} --fresh", begun="evade", timed=(_HASHES,)),
    Call(name="cached", words=f"train {_NETWORK} --batch 8 --epochs 1 --cache {{out}}/cache --out {{out}} --json"),
    Call(name="demo", words="demo --pairs 20 --out {out} --json", timed=("report.html", _HASHES)),
    Call(
        name="study",
        words=f"study run mehr-thresholds {_FACES} --pairs {{pairs}} --network synth-mobile --out {{out}} --json",
        timed=("parts/**/*.json", "parts/**/*.npz", "*/results.json", "*/results.csv", "*/report.html", _HASHES),
    ),
    Call(
        name="evaluated",
        words=f"detect evaluate {{out}} --unseen mi-fgsm:3@0.03 {_SEEN}",
        begun="detect",
    ),
    Call(
        name="exported",
        words="detect export --model synth-mobile --detector"
        " {detect}/detectors/mlp-medoid-l2-relative.safetensors --out {out}.pt2 --json",
        resumes=False,
    ),
)
"""Calls that are one of several on one folder, or take long, for what disturbs runs."""


def write_inputs(root: Path) -> None:
    """Write faces of synthetic people, two lists of pairs in folds, and weights that are not the shipped ones."""
    people = [person for person in range(PEOPLE) for _ in range(IMAGES)]
    images = to_uint8(render_faces(people, list(range(IMAGES)) * PEOPLE, seed=5).images)
    for k, image in enumerate(images):
        path = root / "faces" / _name(people[k], k % IMAGES)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path.with_suffix(".png"), image)
    pairs = list(_pairs())
    write_pairs_csv(root / "pairs.csv", pairs)
    write_pairs_csv(root / "held.csv", pairs[:8])
    with torch.random.fork_rng(devices=[]):
        state = load("synth-mobile", random_weights_seed=2).backbone.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, str(root / "two.safetensors"))


def _name(person: int, image: int) -> str:
    return f"p{person}/{image}"


def _pairs() -> Iterator[Pair]:
    for fold in range(2):
        for k in range(fold * PEOPLE // 2, (fold + 1) * PEOPLE // 2):
            other = fold * PEOPLE // 2 + (k + 1) % (PEOPLE // 2)
            yield Pair(first=_name(k, 0), second=_name(k, 1), same=True, fold=fold)
            yield Pair(first=_name(k, 0), second=_name(other, 2), same=False, fold=fold)
            yield Pair(first=_name(k, 3), second=_name(k, 4), same=True, fold=fold)
            yield Pair(first=_name(k, 3), second=_name(other, 1), same=False, fold=fold)
