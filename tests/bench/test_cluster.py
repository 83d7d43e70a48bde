"""The simulation of many workers against what is known in closed form."""

import math
import sys

import numpy as np
import pytest

from bench.cluster import Cluster, simulate

pytest.importorskip("simpy")

WORK = np.random.default_rng(0).exponential(10, 500)


@pytest.mark.parametrize("shared", [False, True])
def test_one_worker_without_failures_takes_the_sum(shared):
    found = simulate(WORK, Cluster(workers=1, shared=shared), seed=0)
    assert found.seconds == pytest.approx(WORK.sum())
    assert (found.over_ideal, found.lost, found.failures, found.idle) == (pytest.approx(1), 0, 0, pytest.approx(0))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("workers", "slots", "items", "rounds"), [(4, 1, 9, 3), (4, 1, 8, 2), (1, 4, 9, 3), (2, 2, 9, 3)]
)
def test_equal_items_on_equal_workers_take_whole_rounds(shared, workers, slots, items, rounds):
    found = simulate([2.0] * items, Cluster(workers=workers, shared=shared, slots=slots), seed=0)
    assert rounds == math.ceil(items / (workers * slots))
    assert found.seconds == 2.0 * rounds


def test_the_slowest_worker_decides_in_shards_and_at_most_one_item_in_a_queue():
    shards, queue = (simulate([1.0] * 800, Cluster(workers=8, shared=s, spread=0.3), seed=1) for s in (False, True))
    speeds = np.exp(0.3 * np.random.default_rng(1).standard_normal(8))
    assert shards.ideal == queue.ideal == pytest.approx(800 / speeds.sum())
    assert shards.seconds == pytest.approx(100 / speeds.min())
    assert shards.idle == pytest.approx(1 - (speeds.min() / speeds).mean())
    assert queue.ideal <= queue.seconds <= queue.ideal + 1 / speeds.min()


def test_a_slot_takes_the_next_item_at_once():
    # 1 and 5 begin; 4 follows in the slot of 1, and both slots end at 5
    assert simulate([1.0, 5.0, 4.0], Cluster(workers=1, shared=True, slots=2), seed=0).seconds == 5.0


def test_an_item_that_begins_again_takes_the_known_time():
    # mean time M between failures, restarts of R: an item of d seconds takes (M + R)(e^(d / M) - 1)
    mtbf, item, restart, items = 10.0, 8.0, 3.0, 10_000
    found = simulate([item] * items, Cluster(workers=1, shared=True, mtbf=mtbf, restart=restart), seed=2)
    growth = math.exp(item / mtbf) - 1
    assert found.failures / items == pytest.approx(growth, rel=0.05)
    assert found.lost / items == pytest.approx(mtbf * growth - item, rel=0.05)
    assert found.seconds / items == pytest.approx((mtbf + restart) * growth, rel=0.05)


def test_of_work_that_is_kept_a_failure_loses_a_little():
    # the work since the last failure is exponential, of which at most s are lost: M (1 - e^(-s / M)) in the mean
    mtbf, stake = 10.0, 4.0
    case = Cluster(workers=1, shared=False, mtbf=mtbf, restart=1.0, at_stake=stake)
    found = simulate([20_000.0], case, seed=3)
    assert found.lost / found.failures == pytest.approx(mtbf * (1 - math.exp(-stake / mtbf)), rel=0.05)
    assert found.seconds == pytest.approx(20_000 + found.lost + found.failures * 1.0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("at_stake", [math.inf, 2.0])
def test_every_item_is_finished_once_whatever_fails(shared, slots, at_stake):
    case = Cluster(workers=7, shared=shared, slots=slots, spread=0.2, mtbf=40, restart=5, at_stake=at_stake)
    found = simulate(WORK, case, seed=4)
    assert found.failures > 10
    assert (found.finished == 1).all()
    assert found.seconds > found.ideal
    again = simulate(WORK, case, seed=4)
    assert (again.seconds, again.lost) == (found.seconds, found.lost)
    assert simulate(WORK, case, seed=5).seconds != found.seconds


def test_what_comes_back_to_the_queue_is_taken_by_those_who_wait():
    # the long item comes back while the others have nothing left: one of them takes it during the restart
    case = Cluster(workers=16, shared=True, mtbf=100, restart=1e6)
    found = simulate([20.0] * 16, case, seed=6)
    assert found.failures > 0
    assert found.seconds < 1e6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"slots": 0}, "slots: expected at least 1, got 0"),
        ({"spread": -0.1}, "spread: expected at least 0, got -0.1"),
        ({"restart": math.nan}, "restart: expected at least 0, got nan"),
        ({"mtbf": 0}, "mtbf: expected seconds above 0, got 0"),
    ],
)
def test_mistakes_of_a_cluster(given, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**{"workers": 1, "shared": True, **given})


@pytest.mark.parametrize("work", [[], [1.0, 0.0], [math.inf], [[1.0]]])
def test_mistakes_of_work(work):
    with pytest.raises(ValueError, match="work: expected finite seconds above 0, one an item, got an array"):
        simulate(work, Cluster(workers=1, shared=True), seed=0)


def test_without_simpy_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(ImportError, match="scale: expected simpy, got no such package; pip install simpy"):
        simulate([1.0], Cluster(workers=1, shared=True), seed=0)
