"""Where the time of an attack goes."""

import pytest

from bench import tables
from bench.registry import REGISTRY, Options


@pytest.mark.slow
def test_the_parts_of_a_run_are_its_time():
    rows = REGISTRY["breakdown"].run(Options(data=None, device="cpu", quick=True, only=frozenset({"mi-fgsm"})))
    assert [row["run"].endswith("stop at success") for row in rows] == [False, True] * 2
    assert list(dict.fromkeys(row["attack"] for row in rows)) == ["mi-fgsm", "mi-fgsm, 40 steps"]
    for row in rows:
        parts = [value for name, value in row.items() if name.startswith("share_") and "," not in name]
        parts.remove(row["share_the rest"])
        assert sum(parts) == pytest.approx(1)
        assert all(0 <= part <= 1 for part in parts)
        kinds = (row["share_convolutions, forward"], row["share_convolutions, backward"], row["share_the rest"])
        assert sum(kinds) == pytest.approx(1)
        assert min(kinds) > 0
        spent = row["step_ms"] * row["evaluations"] * row["images"]
        assert spent == pytest.approx(row["share_steps"] * row["ms_an_image"] * row["images"])
    assert tables.breakdown({"rows": rows}).count("\n| MI-FGSM, synth-vgg") == 2
    assert tables.breakdown({"rows": rows}).count("\n| MI-FGSM, 40 steps, synth-vgg") == 2
