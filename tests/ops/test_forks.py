"""The kernels on a CPU in a forked child: whatever ran before the fork, child and parent go on with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Torch is called with few elements once there is a child: its own threads do not survive a fork.
_PROGRAM = """
import os, sys, threading
import torch
from fastadv import ops

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(1)
ORIGIN, GRAD = torch.rand(4, 3, 112, 112, generator=draw), torch.randn(4, 3, 112, 112, generator=draw)
EXPECTED = (ORIGIN + 0.01 * GRAD.sign()).clamp(0, 1).numpy()
COPIES = [ORIGIN.clone() for _ in range(40)]

def step():
    x = COPIES.pop()
    ops.sign_step_(x, GRAD, ORIGIN, alpha=0.01, eps=0.1, backend="cpu")
    return bool(abs(x.numpy() - EXPECTED).max() < 1e-6) and x.numpy().tobytes()

def forked(work):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def beside_a_thread():
    worker = threading.Thread(target=lambda: [step() for _ in range(8)])
    worker.start()
    done = [forked(step) for _ in range(3)]
    worker.join()
    return all(done) and step()

for name, case in {
    "before the first call": lambda: forked(step),
    "and the parent's first call": step,
    "after the first call": lambda: forked(step) and forked(step) and step(),
    "the same bits": lambda: forked(lambda first=step(): first == step()),
    "a child of a child, which has the pool": lambda: forked(lambda: step() and forked(step) and step()) and step(),
    "beside a thread that steps": beside_a_thread,
    "beside a thread that steps in the pool": lambda: forked(beside_a_thread),
}.items():
    print(name, flush=True)
    if not case():
        sys.exit(1)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_child_and_parent_go_on() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a child that hangs ends with it
    ) as process:
        try:
            said, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said = process.communicate()[0]
    assert said.splitlines()[-1] == "done", "ended in the last of these"
