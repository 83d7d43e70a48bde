"""What is folded in the networks that are compared, and the table of the times."""

import pytest
import torch

from bench import fold, tables
from bench.registry import REGISTRY, Options
from fastadv.models import load
from fastadv.models.folding import BATCH_NORMS


@pytest.mark.parametrize(("network", "some_before"), [("synth-mobile", False), ("synth-resnet", True)])
def test_what_stands_before_a_layer_is_folded_in_the_last_alone(network, some_before):
    model = load(network)
    made = fold.variants(model, "fp32")
    counts = [sum(isinstance(m, BATCH_NORMS) for m in each.modules()) for each in made.values()]
    assert counts[0] == sum(isinstance(m, BATCH_NORMS) for m in model.modules()) > 0
    assert counts[0] > counts[1] >= counts[2] == 0
    assert (counts[1] > 0) == some_before
    x = torch.rand(2, *model.image_shape)
    with torch.no_grad():
        for each in made.values():
            torch.testing.assert_close(each(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_row_a_network_and_precision(monkeypatch):
    monkeypatch.setattr(fold, "BATCH", {"mobilefacenet": (2, 2)})
    monkeypatch.setattr(fold, "keep_freed_memory", lambda: True)  # of the process that runs the tests
    rows = REGISTRY["fold"].run(Options(data=None, device="cpu", quick=True))
    assert rows[0]["precision"] == "fp32"
    for row in rows:
        assert (row["left_behind"], row["left_all"]) == (0, 0)
        assert row["none_ratio_low"] <= row["none_ratio"] <= row["none_ratio_high"]
    text = tables.fold({"rows": rows})
    assert f"| mobilefacenet, fp32, 2 | {rows[0]['batch_norms']} | {rows[0]['batch_norms']} | 0 |" in text
