"""Timings for ``pytest bench --benchmark-compare``: operations, their derivatives and a tick."""

import pytest
import torch

from bench.engine import tick_and_passes
from bench.ops_cases import cases

pytest.importorskip("pytest_benchmark")

CASES = {f"{case.op}: {case.size}": case for case in cases("cpu")}


@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark, name):
    case = CASES[name]
    given = case.make("cpu")
    with torch.no_grad():
        benchmark(case.ready(case.ours, given))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_speed_of_a_tick(benchmark, precision):
    tick, *_ = tick_and_passes("mobilefacenet", precision, batch=4, device="cpu")
    benchmark(tick)
