"""Where an operation is run and compared with its reference."""

import importlib.util
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from fastadv import _native, backends


class Target(NamedTuple):
    """A backend, its instruction set where that can be chosen, and the device of the tensors."""

    backend: str
    isa: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Whether this is Triton's interpreter, which takes a hundred times as long as any other target."""
        return self.backend == "triton" and self.device == "cpu"


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
    if chosen.interpreted:
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        if not backends.interpreted():
            pytest.skip("Triton's interpreter is off: TRITON_INTERPRET=0, or a GPU")
    if chosen.isa:
        if chosen.isa not in _native.cpu_isas():
            pytest.skip(f"this processor does not run {chosen.isa}")
        monkeypatch.setenv("FASTADV_CPU_ISA", chosen.isa)
    backends.cpu_isa.cache_clear()
    yield chosen
    monkeypatch.undo()
    backends.cpu_isa.cache_clear()


@pytest.fixture
def sized(target):
    """Fewer channels for Triton's interpreter: as many are left over of its blocks of 64, but it walks three blocks."""

    def sized(case):
        blocks, left = divmod(case.shape[1], 64)
        few = target.interpreted and blocks > 2
        return replace(case, shape=(case.shape[0], 2 * 64 + left, *case.shape[2:])) if few else case

    return sized


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
