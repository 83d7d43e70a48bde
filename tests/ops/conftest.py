"""Where an operation is run and compared with its reference."""

import importlib.util
from typing import NamedTuple

import pytest
import torch

from fastadv import _native, backends


class Target(NamedTuple):
    """A backend, its instruction set where that can be chosen, and the device of the tensors."""

    backend: str
    isa: str
    device: str


TARGETS = [
    *(pytest.param(Target("cpu", isa, "cpu"), id=f"cpu-{isa}") for isa in ("baseline", "avx2", "avx512")),
    pytest.param(Target("triton", "", "cpu"), id="triton-interpreted"),
    pytest.param(Target("reference", "", "cuda"), id="reference-gpu", marks=pytest.mark.gpu),
    pytest.param(Target("cuda", "", "cuda"), id="cuda-gpu", marks=pytest.mark.gpu),
    pytest.param(Target("triton", "", "cuda"), id="triton-gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(params=TARGETS)
def target(request, monkeypatch):
    """Every backend but the reference on the CPU; the test is skipped where one cannot run."""
    chosen: Target = request.param
    if chosen.backend == "triton" and chosen.device == "cpu":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        if not backends.interpreted():
            pytest.skip("the interpreter is off where there is a GPU")
    if chosen.isa:
        if chosen.isa not in _native.cpu_isas():
            pytest.skip(f"this processor does not run {chosen.isa}")
        monkeypatch.setenv("FASTADV_CPU_ISA", chosen.isa)
    backends.cpu_isa.cache_clear()
    yield chosen
    monkeypatch.undo()
    backends.cpu_isa.cache_clear()


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request):
    """Every backend that takes CPU tensors."""
    if request.param == "triton" and not (importlib.util.find_spec("triton") and backends.interpreted()):
        pytest.skip("triton takes CPU tensors in its interpreter only")
    return request.param


@pytest.fixture
def poisoned(monkeypatch):
    """New memory of operations is NaN, so that what is not written shows."""

    def poisonous(empty):
        def poison(*args, **kwargs):
            made = empty(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return poison

    monkeypatch.setattr(torch.Tensor, "new_empty", poisonous(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", poisonous(torch.empty))
