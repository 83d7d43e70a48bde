"""Small timings for ``pytest bench --benchmark-compare``: each operation as this machine would run it."""

import pytest
import torch

from bench.ops_cases import cases

pytest.importorskip("pytest_benchmark")

SMALL = {case.op: case for case in reversed(cases("cpu"))}  # the first size of each


@pytest.mark.parametrize("op", sorted(SMALL))
def test_speed(benchmark, op):
    case = SMALL[op]
    given = case.make("cpu")
    with torch.no_grad():
        benchmark(case.ready(case.ours, given))
