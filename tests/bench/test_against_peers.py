import types

import numpy as np
import pytest
import torch
from torch import nn

from bench import against_peers
from bench import run as runner
from bench.peers import counting, plain
from bench.peers.calls import Given, Network, Setting
from bench.peers.lost import Outcome, lost
from bench.peers.versions import PEERS, peer_versions
from fastadv import attacks, wrap
from fastadv.attacks import Misclassify
from fastadv.engine import Engine, run

EPS = 8 / 255


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(648, 5)
    )
    return wrap(network, input_size=26, mean=0.5, std=0.5)


@pytest.fixture(scope="module")
def given(model):
    x = torch.randint(0, 256, (6, 3, 26, 26), generator=torch.Generator().manual_seed(1)).float() / 255
    with torch.no_grad():
        label = model.logits(x).argmax(1)
    return Given(x=x, label=label, wanted=(label + 1) % 5, target=x.flip(0))


@pytest.mark.parametrize(
    ("attack", "setting"),
    [
        (attacks.fgsm(eps=EPS), Setting(steps=1, eps=EPS, step_size=EPS)),
        (attacks.bim(eps=EPS, steps=5, step_size=2 / 255), Setting(steps=5, eps=EPS, step_size=2 / 255)),
    ],
    ids=["fgsm", "pgd without a random start"],
)
def test_the_plain_loop_and_the_engine_make_the_same_bytes(model, given, attack, setting):
    by_loop = plain.bim(Network(model).requires_grad_(False), given, setting)
    by_engine = run(attack, Misclassify(given.label), model, given.x, engine=Engine(batch=6)).images
    assert torch.equal((by_loop * 255).round().byte(), (by_engine * 255).round().byte())
    assert not torch.equal(by_engine, given.x)


def outcome(success, norm=None):
    success = np.asarray(success, bool)
    return Outcome(success=success, norm=np.ones(len(success)) if norm is None else np.asarray(norm, float))


def test_a_row_loses_by_its_success_beyond_the_paired_interval():
    most = [True] * 256
    assert lost([outcome(most), outcome([False] * 20 + most[20:])], minimal=False) == [False, True]
    assert lost([outcome(most), outcome([False, *most[1:]])], minimal=False) == [False, False]


def test_two_images_prove_nothing():
    assert lost([outcome([True] * 256), outcome([False] * 2)], minimal=False) == [False, False]
    assert lost([outcome([True] * 256), outcome([False] * 6)], minimal=False) == [False, True]


def test_rows_are_compared_on_the_images_that_both_had():
    assert lost([outcome([True] * 32 + [False] * 224), outcome([True] * 32)], minimal=False) == [False, False]
    assert lost([outcome([False] * 32 + [True] * 224), outcome([True] * 32)], minimal=False) == [True, False]


def test_a_norm_loses_by_more_than_one_per_cent_and_only_among_smallest_changes():
    rows = [outcome([True] * 8, [1.0] * 8), outcome([True] * 8, [1.009] * 8), outcome([True] * 8, [1.011] * 8)]
    assert lost(rows, minimal=True) == [False, False, True]
    assert lost(rows, minimal=False) == [False, False, False]


def test_short_changes_that_fail_beat_nobody():
    rows = [outcome([True] * 64, [2.0] * 64), outcome([True] * 8 + [False] * 56, [1.0] * 64)]
    assert lost(rows, minimal=True) == [False, True]


def test_passes_are_counted_in_images_whoever_calls_the_model(model, given):
    counter = counting.Counter()
    watched = counter.watching(type(model), "features", "forward", "logits")
    with watched, counting.Outside(counter) as outside, outside.reads:
        plain.bim(Network(model), given, Setting(steps=3, eps=EPS, step_size=EPS))
        with torch.no_grad():
            model(given.x)
    # one grey image for the number of classes, three steps, one pass without a gradient
    assert (counter.forwards, counter.backwards, counter.ticks) == (1 + 3 * 6 + 6, 3 * 6, 3)
    operations, syncs = outside.per_tick()
    assert 5 < operations < 25
    assert syncs == 0


def test_reads_of_values_are_counted(model):
    with counting.Outside(counting.Counter()) as outside, outside.reads:
        x = torch.ones(3)
        x.sum().item()
        x[x > 0]
        x.tolist()
    assert outside.syncs == 3


def test_versions_name_every_library():
    assert set(PEERS) < set(peer_versions())


def test_a_missing_peer_is_named_and_the_others_are_measured(monkeypatch, capsys):
    missing = types.SimpleNamespace(NAME="somelib", ATTACKS={"fgsm": None}, missing=lambda: "No module named 'somelib'")
    monkeypatch.setattr(against_peers, "PEERS", (plain, missing))
    monkeypatch.delenv("FASTADV_DATA", raising=False)
    assert runner.main(["peers", "--quick", "--only", "fgsm"]) == 0
    printed = capsys.readouterr().out
    assert "pgd" not in printed
    assert "fgsm: without somelib: No module named 'somelib'" in printed
    rows = [line.split("  ")[0] for line in printed.splitlines()]
    assert {"plain loop", "fastadv"} <= set(rows)
