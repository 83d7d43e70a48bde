"""The choice of a backend, and what doctor is told."""

import importlib.util
import logging
import subprocess
import sys

import pytest
import torch

from fastadv import _native, backends, ops
from fastadv.testing.cases import StepCase

CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch):
    for cached in (backends.resolve, backends.cpu_isa):
        cached.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cached in (backends.resolve, backends.cpu_isa):
        cached.cache_clear()


def test_auto_takes_the_compiled_kernels():
    assert backends.resolve("sign_step_", CPU) == "cpu"
    assert backends.resolve("sign_step_", CPU, "auto") == "cpu"


def test_names_that_can_run_are_taken():
    assert backends.resolve("momentum_step_", CPU, "reference") == "reference"


def test_without_the_compiled_module_auto_falls_back_and_says_so_once(fresh, caplog):
    fresh.setattr(_native, "PROBLEM", "it was not built")
    i = StepCase(shape=(1, 3, 4, 4)).make()
    with caplog.at_level(logging.WARNING, "fastadv"):
        for _ in range(3):
            ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1)
    assert [record.message for record in caplog.records] == [
        "sign_step_ on cpu: using 'reference', since 'cpu' cannot: it was not built"
    ]
    with pytest.raises(
        backends.BackendUnavailable, match="backend: expected one that can run .* on cpu, got 'cpu': it was not built"
    ):
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend="cpu")


def test_a_stale_module_is_named(fresh):
    fresh.setitem(backends.STEMS, "new_", "new")
    assert "older than the sources: it lacks cpu_new" in backends.problem("new_", "cpu", CPU)
    assert backends.problem("missing_", "cpu", CPU) == "there is no operation 'missing_'"


def test_the_table_has_every_operation_and_backend():
    rows = {(row.op, row.backend): row for row in backends.table()}
    assert set(rows) == {(op, name) for op in backends.STEMS for name in backends.NAMES}
    for row in rows.values():
        assert row.available == (row.reason == "")
    assert rows["sign_step_", "cpu"].available


def test_features_are_words():
    features = backends.features()
    assert features["native module"] == "loaded"
    assert features["cpu instruction set in use"] in features["cpu instruction sets"]
    assert all(isinstance(value, str) and value for value in features.values())


def test_the_instruction_set_can_be_chosen(fresh):
    fresh.setenv("FASTADV_CPU_ISA", "baseline")
    assert backends.cpu_isa() == 0


def test_an_instruction_set_that_does_not_run(fresh):
    fresh.setenv("FASTADV_CPU_ISA", "sse9")
    i = StepCase(shape=(1, 3, 4, 4)).make()
    with pytest.raises(
        backends.BackendUnavailable,
        match="FASTADV_CPU_ISA: expected one that this machine runs .baseline.*, got 'sse9'",
    ):
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend="cpu")
    assert "sse9" in backends.features()["cpu instruction set in use"]


@pytest.fixture
def gpu(fresh):
    """A device of compute capability 9.0, as far as the choice of a backend looks."""
    fresh.setattr(_native, "PROBLEM", "")
    fresh.setattr(_native, "has", lambda name: True)
    fresh.setattr(_native, "cuda_problem", lambda: "")
    fresh.setattr(_native, "cuda_architectures", lambda: ("80", "90"))
    fresh.setattr(torch.cuda, "is_available", lambda: True)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return fresh


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_on_a_gpu_each_operation_takes_the_form_that_was_measured_to_be_fastest(gpu):
    gpu.setattr(backends, "_triton_can_build", lambda: True)
    chosen = {op: backends.resolve(op, torch.device("cuda", 0)) for op in backends.STEMS}
    assert chosen.pop("momentum_step_") == "triton"
    assert set(chosen.values()) == {"cuda"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_without_a_compiler(gpu, caplog):
    gpu.setenv("CC", "no-such-compiler")
    device = torch.device("cuda", 0)
    with caplog.at_level(logging.WARNING, "fastadv"):
        assert backends.resolve("momentum_step_", device) == "cuda"
    assert "using 'cuda', since 'triton' cannot: on a GPU it needs a C compiler" in caplog.text
    with pytest.raises(backends.BackendUnavailable, match="got 'triton': on a GPU it needs a C compiler"):
        backends.resolve("box_blur", device, "triton")


def test_a_missing_module_explains_itself():
    code = """
import sys
sys.modules["fastadv._C"] = None
from fastadv import _native, backends, ops
assert "pip install" in _native.PROBLEM, _native.PROBLEM
assert _native.cpu_isas() == () and _native.cuda_architectures() == ()
assert not {row.backend: row.available for row in backends.table()}["cpu"]
try:
    _native.module()
except ImportError as error:
    assert "fastadv._C cannot be imported" in str(error)
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("built", "runs", "fails"),
    [
        ("80 90", "8.0 8.6 8.7 8.9 9.0 10.0 12.1", "7.5"),
        ("90", "9.0 10.0 12.0", "8.9"),
        ("90-real", "9.0", "8.9 10.0 12.0"),
        ("80-real", "8.0 8.6 8.9", "8.7 9.0 7.5"),
        ("87-real", "8.7", "8.6 8.9"),
        ("80-virtual", "8.0 8.7 9.0 12.0", "7.5"),
        ("90a", "9.0", "8.9 10.0"),
        ("90a-real 86", "9.0 8.6 10.0", "8.0"),
        ("100f", "10.0 10.3", "10.1 9.0 11.0 12.0"),
        ("120f-virtual", "12.0 12.1", "10.3"),
        ("103f", "10.3", "10.0 12.0"),
        ("75-real 80-real 120", "7.5 8.9 12.0 12.1", "9.0 10.0"),
        ("native", "9.0 5.0", ""),
    ],
)
def test_which_device_the_kernels_run_on(built, runs, fails, monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(_native, "PROBLEM", "")
    monkeypatch.setattr(_native, "has", lambda name: True)
    monkeypatch.setattr(_native, "cuda_problem", lambda: "")
    monkeypatch.setattr(_native, "cuda_architectures", lambda: tuple(built.split()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for text in (runs + " " + fails).split():
        capability = tuple(map(int, text.split(".")))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        problem = backends.problem("box_blur", "cuda", device)
        if text in runs.split():
            assert problem == "", text
        else:
            number = text.replace(".", "")
            assert problem == (
                f"the device has compute capability {text}; the kernels were built for {', '.join(built.split())} "
                f"(build with FASTADV_CUDA_ARCHITECTURES={number})"
            )


@pytest.mark.skipif("80" not in _native.cuda_architectures(), reason="this build has no CUDA kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_kernels_without_a_device_say_so():
    assert backends.problem("sign_step_", "cuda", torch.device("cuda", 0)) == "PyTorch sees no CUDA device"
    assert _native.cuda_problem()
    with pytest.raises(RuntimeError, match=r"sign_step_: CUDA error \d+: "):
        _native.module().cuda_sign_step(0, 0, 0, 0, 0, 0.1, 0, 0.1, 0, 0, 0.0, 1.0, 1, 4, 0, 0)
