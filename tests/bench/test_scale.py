"""The model of ``docs/scale.md``: its formulas, and that its tables and its simulation have what they say."""

import numpy as np
import pytest

from bench.scale import Ticks, interval, simulated, slots
from bench.scale_costs import per_image
from bench.scale_model import DAY, Assumed, Worker, days, devices, latest, loads, model
from bench.scale_tables import KINDS, first

COSTS = {
    "listed": 1e-4,
    "checked": 2e-4,
    "merged": 3e-4,
    "read": 40e3,
    "written": 60e3,
    "operations": 5.0,
    "merge_operations": 2.0,
    "listed_memory": 1e3,
    "png": 20e3,
    "jpeg": 4e3,
    "adversarial": 25e3,
    "allocated": 28_672.0,
    "journal_row": 700.0,
    "manifest_row": 200.0,
    "decoded_png": 3e-4,
    "decoded_jpeg": 3e-4,
    "encoded": 2e-4,
}
TICKS = Ticks(values=np.array([1, 3]), counts=np.array([3, 1]), evaluation=2.0, rest=1.0, slots=10, unsaved=4)


def test_the_mean_and_the_age_of_an_image_at_hand():
    assert TICKS.mean == 1.5  # 3/4 of 1 and 1/4 of 3
    assert TICKS.age == 1.0  # the mean square, 3, over twice the mean
    assert TICKS.at_stake == 10 * 1.0 * 2.0 + 4 * (2.0 * 1.5 + 1.0)


def test_a_batch_takes_as_long_as_its_longest_image():
    assert TICKS.longest(1) == TICKS.mean
    assert TICKS.longest(2) == pytest.approx(3 - 2 * (3 / 4) ** 2)
    draw = np.random.default_rng(0).choice(TICKS.values, (20_000, 4), p=TICKS.shares)
    assert TICKS.longest(4) == pytest.approx(draw.max(1).mean(), rel=0.01)


def test_the_work_of_blocks_is_that_of_their_images():
    work = TICKS.work(np.random.default_rng(0), 100, 5_000)
    assert work.mean() == pytest.approx(100 * (2.0 * 1.5 + 1.0), rel=0.01)
    assert work.var() == pytest.approx(100 * 2.0**2 * (3 - 1.5**2), rel=0.1)


def test_what_is_asked_for_grows_with_the_workers_where_they_share_it():
    worker = Worker(name="w", rate=100.0, source="assumed", gpu=True)
    assumed = Assumed(network=1e8, storage=1e9, operations=1e4, cores=2)
    one, many = (loads(worker, count, COSTS, 5e-3, assumed) for count in (1, 10))
    assert one == pytest.approx(
        {"network": 0.1, "storage": 0.01, "files": 0.05, "Python": 0.5, "list": 0.01, "merge": 0.03, "codec": 0.04}
    )
    assert {name: many[name] / one[name] for name in one} == pytest.approx(
        {"network": 1, "storage": 10, "files": 10, "Python": 1, "list": 10, "merge": 10, "codec": 1}
    )


def test_the_first_to_saturate_is_the_one_of_which_most_is_asked_for():
    found = loads(devices()[0], 512, {**COSTS, "merged": 1.0}, 1e-9, Assumed())
    assert first(found, one_run=True) == "merge"
    assert first(found, one_run=False) == "files"


def test_shards_of_one_run_list_and_merge_all_images():
    assert days(100.0, 1, COSTS, shards=True) == pytest.approx(1e9 * (0.01 + 1e-4 + 3e-4) / DAY)
    assert days(100.0, 10**9, COSTS, shards=True) == pytest.approx(1e9 * 4e-4 / DAY)
    assert days(100.0, 10, COSTS, shards=False) == pytest.approx(1e9 * (0.01 + 1e-4) / 10 / DAY)


def test_what_an_image_adds_leaves_out_what_a_process_costs():
    few, many = ({"run": {"cpu": 7 + 0.5 * n, "rchar": 50 + 2 * n}, "merge": {"cpu": 3.0}} for n in (10, 40))
    assert per_image(few, many, 30) == {"run": {"cpu": 0.5, "rchar": 2}, "merge": {"cpu": 0}}


def test_an_interval_is_that_of_the_mean_and_within_the_values():
    mean, low, high = interval(range(100))
    assert mean == 49.5
    assert (low, high) == pytest.approx((49.5 - 1.96 * 2.9, 49.5 + 1.96 * 2.9), rel=0.02)  # 2.9: their error
    assert interval([1.0] * 5) == (1.0, 1.0, 1.0)


def test_a_measured_rate_names_its_file_and_another_is_assumed():
    found = devices()
    assert {worker.source for worker in found} == {latest("streaming")[0], latest("peers")[0], "assumed"}
    assert [worker for worker in found if worker.gpu] == [worker for worker in found if worker.source == "assumed"]


def test_every_row_has_its_table_and_every_symbol_its_source():
    assumed = Assumed(repeats=2, run=20_000)
    ticks = [{"part": "ticks", "evaluations": 1, "images": 3}]
    rows = [
        *model(COSTS, 5e-4, assumed),
        *ticks,
        *slots(TICKS, assumed, 200),
        *simulated(TICKS, 2e-4, assumed, images=80_000, counts=(1, 8)),
    ]
    assert {row["part"] for row in rows} == {"cost", "device", "total", "load", "ticks", "slots", "simulation"}
    assert {row["source"] for row in rows if row["part"] == "cost"} == {"this run", "assumed"}
    made = {kind: table({"rows": rows}) for kind, table in KINDS.items()}
    assert "| bandwidth of a worker's network | F | 1.25 GB/s | assumed |" in made["scale-costs"]
    assert "| manifests | 200 GB |" in made["scale-totals"]
    assert "equal speeds, no failures: queue | 1.000 (1.000 to 1.000) |" in made["scale-simulation"]
    assert "speeds differ by 10 %: shards | 0 %, " in made["scale-lost"]


def test_the_smaller_the_parts_the_less_slow_and_failing_workers_cost():
    rows = simulated(TICKS, 0.0, Assumed(repeats=2, block=100, run=1_000), images=80_000, counts=(8,))
    over = {(row["scenario"], row["way"]): row["over_ideal"] for row in rows}
    assert all(value >= 1 for value in over.values())
    for scenario in ("speeds differ by 10 %", "the same, a failure a day"):
        assert over[scenario, "shards"] > over[scenario, "runs"] > over[scenario, "queue"]


def test_the_committed_result_names_files_that_are_there_and_their_rates():
    _, found = latest("scale")
    rows = [row for row in found["rows"] if row["part"] == "device"]
    rates = {worker.name: (worker.rate, worker.source) for worker in devices()}
    assert {row["worker"]: (row["images_per_s"], row["source"]) for row in rows} == rates
