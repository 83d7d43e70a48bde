"""Which benchmarks are run, and that the operations and their derivatives are all among them."""

import re
from types import MappingProxyType

import pytest
import torch

from bench import ops
from bench import run as runner
from bench.ops_cases import cases
from bench.registry import REGISTRY, Entry
from fastadv import backends


@pytest.mark.parametrize(("arguments", "expected"), [(["--all"], ["a", "b"]), (["b", "long"], ["b", "long"])])
def test_what_takes_an_hour_is_measured_only_by_name(arguments, expected, monkeypatch):
    ran = []

    def entry(name, **more):
        return Entry(what="", needs_data=False, run=lambda options: ran.append(name) or [], **more)

    table = {"a": entry("a"), "long": entry("long", by_name=True), "b": entry("b")}
    monkeypatch.setattr(runner, "REGISTRY", MappingProxyType(table))
    assert runner.main(arguments) == 0
    assert ran == expected
    long = ["align-accuracy", "streaming", "distributed", "scale", "peers"]
    assert [name for name, entry in REGISTRY.items() if entry.by_name] == long


def test_only_some_operations(monkeypatch):
    for limit in ("copy_bandwidth", "read_bandwidth"):
        monkeypatch.setattr(ops, limit, lambda device, seconds: 1e9)
    rows = ops.run(device="cpu", quick=True, only={"average_pool"}, compiled=False)
    assert {row["op"] for row in rows if "backend" in row} == {"average_pool", "average_pool (derivative)"}
    assert {row["backend"] for row in rows if "backend" in row} >= {"eager", "reference"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guard", "--only", "pgd"], "--only: expected of guard nothing, got 'pgd'"),
        (["peers", "--only", "pgd,pdg"], "--only: expected parts of peers, got 'pdg'"),
        (["ops", "peers", "--only", "pgd"], "--only: expected of ops add_noise_, average_pool, .*, got 'pgd'"),
        ([], "name one of ops, "),
        (["opps"], "name one of .*, got 'opps'"),
    ],
)
def test_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit):
        runner.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_every_operation_is_timed():
    timed = {case.op.partition(" ")[0] for case in cases("cpu") if not case.of}
    assert timed == {op for op in backends.STEMS if not op.endswith("_backward")}


def has_derivative(case):
    given = case.make("cpu")
    first = next(iter(given.values()))
    (first[0] if isinstance(first, list) else first).requires_grad_(True)
    try:
        made = case.ours(**given)
        sum(part.sum() for part in ([made] if isinstance(made, torch.Tensor) else made)).backward()
    except (NotImplementedError, RuntimeError) as error:
        if "no derivative" not in str(error):
            raise
        return False
    return True


def test_every_derivative_is_timed():
    smallest = {case.op.partition(" ")[0]: case for case in reversed(cases("cpu")) if not case.of}
    timed = {case.op.partition(" ")[0] for case in cases("cpu") if case.of}
    assert timed == {op for op, case in smallest.items() if has_derivative(case)}
