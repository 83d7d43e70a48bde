"""Check the fastadv that is installed for this Python: `python -I .ci/check_install.py`, in any folder.

It has to be a copy with a compiled module, not the source tree: its version, `fastadv doctor`, each operation by the
compiled kernels, and one attack through them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path


def expect(what: str, expected: object, got: object) -> None:
    """End with a message unless the two are equal."""
    if expected != got:
        sys.exit(f"{what}: expected {expected}, got {got}")


def check_place() -> None:
    """What is imported is what was installed."""
    spec = importlib.util.find_spec("fastadv")
    if spec is None or spec.origin is None:
        sys.exit(f"fastadv: expected an installed package, got none for {sys.executable}")
    expect("folder of fastadv", Path(sysconfig.get_path("platlib")) / "fastadv", Path(spec.origin).parent)


def check_commands() -> None:
    """The command `fastadv`, away from any source tree."""
    command = Path(sysconfig.get_path("scripts")) / "fastadv"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def said(*words: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([command, *words], cwd=folder, env=clean, capture_output=True, text=True, check=False)
        expect(f"exit status of fastadv {' '.join(words)}", 0, done.returncode)
        return done.stdout

    expect("fastadv --version", metadata.version("fastadv"), said("--version").split()[-1])
    report = json.loads(said("doctor", "--json"))
    expect("native module of fastadv doctor", "loaded", dict(report["facts"])["native module"])
    compiled = [row for row in report["backends"] if row["backend"] == "cpu"]
    expect("whether doctor has operations", True, bool(compiled))
    expect("operations without compiled kernels", [], [row["op"] for row in compiled if not row["available"]])


def check_attack() -> None:
    """Four faces, a network that ships with the package, and the operations that its tensors choose."""
    import torch

    import fastadv as fa
    from fastadv import backends, ops

    chosen = {op: backends.resolve(op, torch.device("cpu")) for op in backends.STEMS}
    expect("operations that choose another backend", {}, {op: name for op, name in chosen.items() if name != "cpu"})
    steps = {}
    for name in ("cpu", "reference"):
        steps[name] = torch.full((1, 5), 0.5)
        gradient = torch.tensor([[1.0, -1.0, 0.0, 2.0, -3.0]])
        ops.sign_step_(steps[name], gradient, steps[name].clone(), alpha=0.25, eps=0.125, backend=name)
    expect("sign_step_ by the compiled kernel", steps["reference"].tolist(), steps["cpu"].tolist())

    faces = fa.data.render_faces([0, 1, 2, 3], [0, 0, 0, 0], seed=7).images
    goal = fa.Impersonate(faces.roll(1, 0), threshold=0.5)
    made = fa.attack("fim", fa.load("synth-mobile"), faces, goal=goal, eps=8 / 255)
    expect("success of the attack", [True] * 4, made.success.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch", metavar="VERSION", help="The PyTorch that was there before fastadv, and has to be still."
    )
    options = parser.parse_args()
    check_place()
    torch_version = metadata.version("torch")
    if options.torch:
        expect("version of torch", options.torch, torch_version.partition("+")[0])
    check_commands()
    check_attack()
    wheel = metadata.distribution("fastadv").read_text("WHEEL") or ""
    tags = ", ".join(line.split()[1] for line in wheel.splitlines() if line.startswith("Tag:"))
    print(
        f"fastadv {metadata.version('fastadv')} ({tags}) runs on torch {torch_version}, Python {sys.version.split()[0]}"
    )


if __name__ == "__main__":
    main()
