"""A small folder of faces and a weights file, made once; the command line in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_files
import torch
from forks import POSSIBLE
from PIL import Image
from safetensors.torch import save_file
from shard_commands import words

from fastadv.cli import app, main
from fastadv.models import load


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobileface_v2.safetensors"
    state = load("mobileface_v2", random_weights_seed=3).backbone.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    return path


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for k in range(6):
        person = rng.integers(0, 256, (7, 7, 3))
        for i in range(3):
            noisy = np.clip(person + rng.integers(-40, 40, person.shape), 0, 255).astype(np.uint8)
            path = root / f"person{k}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(noisy).resize((112, 112), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    lines = [f"person{k}/0,person{k}/{i},1" for k in range(6) for i in (1, 2)]
    lines += [f"person{k}/0,person{(k + j) % 6}/1,0" for k in range(6) for j in (1, 2)]
    path.write_text("first,second,same\n" + "\n".join(lines) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastadv", *map(str, arguments)]


# sends the process a signal when so many images have got their names
STOPPING = """
import os, sys
signal, left, replace = int(sys.argv[1]), int(sys.argv[2]), os.replace
def counting(source, target, **kwargs):
    global left
    replace(source, target, **kwargs)
    left -= str(target).endswith(".png")
    if left == 0:
        left = -1
        os.kill(os.getpid(), signal)
os.replace = counting
sys.argv = ["fastadv", *sys.argv[3:]]
from fastadv.cli import main
main()
"""
FORKS = POSSIBLE and not torch.cuda.is_available()
OWN = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def fastadv(request):
    """Run the command line in a process; returns the finished process."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, env={**os.environ, **OWN}, timeout=300
        )

    return request.getfixturevalue("forks").run if FORKS else call


@pytest.fixture
def inside(monkeypatch, capsys):
    """The command line in this process, for what ends before any work: its exit code and standard error."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fastadv", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr().err

    return call


@pytest.fixture(scope="session")
def start():
    """Start the command line and leave it running."""

    def call(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **OWN}
        )

    return call


@pytest.fixture(scope="session")
def stopped():
    """Run the command line until it has written so many images, and send it a signal there."""

    def call(signal: int, images: int, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", STOPPING, str(int(signal)), str(images), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **OWN}, timeout=300)

    return call


@pytest.fixture(scope="session")
def content():
    """Every file below a folder with its bytes."""
    return run_files.content


@pytest.fixture(scope="module")
def single(faces, tmp_path_factory):
    """The run of one process, by its goal."""
    made = {}

    def of(goal):
        if goal not in made:
            made[goal] = tmp_path_factory.mktemp("single") / "run"
            app(words(faces, made[goal], goal=goal), standalone_mode=False)
        return made[goal]

    return of
