"""Python in the documentation that is marked ```` ```python run ```` runs as it stands, page by page."""

import importlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import fastadv as fa
from fastadv.cli import app
from fastadv.core.extras import EXTRAS

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = re.compile(r"(?ms)^```python run\n(.*?)^```$")


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FAMILIES, PAGES_OF = script("families"), script("generate")
PAGES = {p.name: RUN.findall(p.read_text(encoding="utf-8")) for p in sorted(DOCS.glob("*.md"))}
SNIPPETS = {
    **{name: "\n".join(snippets) for name, snippets in PAGES.items() if snippets},
    **{f"attacks/{f.key}": f.example for f in FAMILIES.FAMILIES},
}


@pytest.mark.parametrize("page", SNIPPETS)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[page], page, "exec"), {"__name__": "snippet"})


SHELL = re.compile(r"(?ms)^```sh run\n(.*?)^```$")


@pytest.mark.slow
def test_the_deployment_runs_as_it_stands(tmp_path):
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("bash or curl is missing")
    pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    blocks = SHELL.findall((DOCS / "deployment.md").read_text(encoding="utf-8"))
    assert len(blocks) == 5
    text = "\n".join(blocks).replace("8000", port)
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{text}"
    for name, words in (("python", ""), ("fastadv", "-m fastadv")):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\nexec '{sys.executable}' {words} \"$@\"\n")
        file.chmod(0o755)
    own = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "320 faces of 8 people" in done.stdout
    assert '"flagged": false' in done.stdout.replace('":false', '": false')
    assert "fastadv_drift_images 26.0" in done.stdout
    assert "on 320 images of faces" in (tmp_path / "serve.log").read_text()
    assert (tmp_path / "why.svg").stat().st_size > 1000
    # what the page serves finds attacks
    guard = fa.Guard(
        model=fa.load("synth-vgg", weights=tmp_path / "study" / "head.safetensors"),
        detector=fa.load_detector(tmp_path / "detector.safetensors"),
    )
    files = sorted((tmp_path / "study" / "attacks").rglob("*.png"))
    attacked = torch.stack([fa.data.to_tensor(fa.data.read_image(file)) for file in files])
    assert len(files) == 64
    assert int(guard(attacked).flagged.sum()) > len(files) / 3


def test_every_attack_has_a_page_and_every_page_an_attack():
    keys = {FAMILIES.family_key(entry) for entry in fa.attacks.list()}
    assert keys == {family.key for family in FAMILIES.FAMILIES}


def test_every_example_runs_an_attack_of_its_page():
    for family in FAMILIES.FAMILIES:
        for name in re.findall(r'fa\.attack\("([^"]+)"', family.example):
            (entry,) = (e for e in fa.attacks.list() if e.name == name)
            assert (name, FAMILIES.family_key(entry)) == (name, family.key)


def test_the_page_on_installing_names_every_extra():
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in (*EXTRAS, "cupy-cuda12", "faiss-gpu") if f"`{extra}`" not in text] == []


def test_every_source_has_its_reference():
    for entry in fa.attacks.list():
        assert any(name in entry.source for name in FAMILIES.REFERENCES), entry


def test_the_generated_pages_leave_out_no_option_and_no_public_name():
    commands, text = PAGES_OF.command_pages(), "\n".join(PAGES_OF.api_pages().values())
    root = typer.main.get_command(app)
    assert {f"commands/{name}.md" for name in ("index", *root.commands)} == set(commands)
    for name, command in {"index": root, **root.commands}.items():
        below = () if command is root else getattr(command, "commands", {}).values()
        options = [o for c in (command, *below) for p in c.params if not getattr(p, "hidden", False) for o in p.opts]
        assert [o for o in options if o not in commands[f"commands/{name}.md"].lower()] == []
    for module in ("fastadv", *PAGES_OF.MODULES):
        names = [n for n in importlib.import_module(module).__all__ if n != "__version__"]
        modules = [n for n in names if isinstance(getattr(sys.modules[module], n), type(sys))]
        assert [n for n in names if n not in modules and f"{module}.{n}" not in text] == []
