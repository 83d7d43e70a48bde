"""Tables of the guard and of the service, and what is gathered for those of detectors."""

import json

import pytest

from bench import collect, guard, tables


def test_a_guard_has_a_row_for_each_batch():
    shared = {"model": "m", "detector": "mlp", "reading": "relative", "batch": 1, "ms_p50": 8.0, "ms_p99": 16.0}
    added = {"adds_p50_percent": 4.04, "adds_p50_interval": (3.96, 4.1), "adds_p99_percent": -1.0, "calls": 345}
    row = shared | added | {"adds_p99_interval": (-2.0, 3.0)}
    text = tables.KINDS["guard"]({"rows": [row | {"run": run} for run in ("bare", "guard", "by hand")]})
    expected = "| m, MLP, `relative` | 1 | 8 / 16 | 4.0 % (4.0 to 4.1) | -1.0 % (-2.0 to 3.0) | 4.0 % / -1.0 % | 345 |"
    assert text.endswith(expected + "\n")
    parts = {"ms_checks": 0.1, "ms_network": 8.25, "ms_between": 0.05, "ms_score": 0.2, "ms_verdicts": 0.06}
    text = tables.KINDS["guard-parts"]({"rows": [row | {"run": "bare"}, row | parts | {"run": "guard"}]})
    assert text.endswith("| m, MLP, `relative` | 1 | 0.1 | 0.25 | 0.05 | 0.2 | 0.06 |\n")


def test_the_service_has_a_row_for_each_number_of_clients():
    row = {"phase": "load", "clients": 8, "answered": 2720, "per_second": 136.0, "images_per_pass": 8.0, "errors": 0}
    row |= {"refused": 0, **{f"{kind}_p{q}": 50.0 + q for kind in ("ms", "refused_ms") for q in (50, 95, 99)}}
    text = tables.KINDS["serve"]({"rows": [row, row | {"phase": "overload", "clients": 512, "refused": 12_345}]})
    assert "| 8 | 2,720 | 136 | 100 / 145 / 149 | 8 | 0 |  | 0 |\n" in text
    assert "| 512 (overload) | 2,720 | 136 | 100 / 145 / 149 | 8 | 12,345 | 100 / 149 | 0 |\n" in text


def test_what_is_added_lies_in_its_interval():
    against = [1.0 + 0.001 * k for k in range(200)]
    low, high = guard.interval([1.1 * each for each in against], against, 0.5)
    assert (low, high) == pytest.approx((10, 10))
    low, high = guard.interval(against[::-1], against, 0.99)
    assert low < 0 < high


def test_attackers_who_know_the_detector_have_a_column_for_each_reading():
    common = {"eps": 8 / 255, "steps": 30, "images": 48}
    made = {"varied": "steps", "made_for": "mlp-centroid-l2-relative"}
    lent = {"varied": "transfer", "made_for": "m"}

    def points(detector, more, hidden):
        both = zip((True, False), hidden, strict=True)
        return [common | more | {"detector": detector, "targeted": kind, "hidden": count} for kind, count in both]

    relative = points("mlp-centroid-l2-relative", made, (48, 47))
    studies = {
        "m": [*relative, *points("lstm-medoid-l2", {**made, "made_for": "lstm-medoid-l2"}, (40, 41))],
        "n": [*relative, *points("mlp-centroid-l2-relative", lent, (3, 22))],
    }
    rows = [{"study": {"config": {"model": name}}, "adaptive_points": found} for name, found in studies.items()]
    text = tables.KINDS["adaptive"]({"rows": rows})
    assert text.startswith("| ε | steps | m, `relative` | m, `raw` | n, `relative` |\n")
    assert "| 8/255 | 30 | 48 of 48 / 47 of 48 | 40 of 48 / 41 of 48 | 48 of 48 / 47 of 48 |\n" in text
    assert text.endswith("| 8/255, made for m | 30 |  |  | 3 of 48 / 22 of 48 |\n")


def test_a_study_of_detectors_is_collected_without_the_folders_of_a_machine(tmp_path):
    kinds = (("natural", "natural"), ("/home/me/photographs", "other"), ("faces/", "other"))
    alarms = [{"detector": name, "label": label, "sort": sort} for name in "ab" for label, sort in kinds]
    found = {"best": "b", "curves": {}, "false_alarms": alarms, "config": {"also_natural": ["/home/me/photographs"]}}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    folder = "/home/me/others"
    config = {"also_natural": [folder, "faces"], f"also_natural {folder} cut": None}
    study = {"config": config, "shown": {f"also_natural {folder}": "9 images"}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    row = collect.detection(tmp_path)
    expected = {"also_natural": ["others", "faces"], "also_natural others cut": None}
    assert row["study"] == {"config": expected, "shown": {"also_natural others": "9 images"}}
    assert row["config"]["also_natural"] == ["photographs"]
    assert [each["label"] for each in row["false_alarms"]] == ["natural", "photographs/", "faces/"]
    assert {each["detector"] for each in row["false_alarms"]} == {"b"}


def test_false_alarms_have_a_row_for_each_source_and_a_column_for_each_study():
    def study(model, fitted, alarms):
        rows = [
            {
                "sort": sort,
                "label": label,
                "found": {"flagged": k, "images": n, "share": k / n, "low": 0.0, "high": 0.5},
            }
            for sort, label, k, n in alarms
        ]
        return {"study": {"config": {"model": model, "also_natural": fitted}}, "false_alarms": rows}

    alarms = [("natural", "natural", 1, 8), ("control", "blur:1", 8, 8), ("other", "a/", 0, 4)]
    text = tables.KINDS["sources"]({"rows": [study("m", [], alarms), study("m", ["b"], alarms[:1])]})
    assert text.startswith("| natural images | m | m, fitted with `b` |\n")
    cell = "1 of 8: 12.5 % [0.0, 50.0]"
    assert f"| unchanged images of the test | {cell} | {cell} |\n| `a/` | 0 of 4: 0.0 % [0.0, 50.0] |  |\n" in text
    assert "blur" not in text


def test_means_has_a_column_for_each_study_and_three_rates():
    def row(detector, auc, found, *, seen=True, kind="targeted"):
        return {"detector": detector, "auc": auc, "found": [None, found, 1.0], "seen": seen, "kind": kind}

    def study(model, seed, shift):
        names = ("mlp-centroid-l2", "mlp-centroid-cosine", "linear-centroid-l2+cosine", "lstm-centroid-l2+cosine")
        names += ("mlp-centroid-l2+cosine", "mlp+linear-centroid-l2+cosine")
        rows = []
        for k, name in enumerate(f"{each}-relative" for each in names):
            rows += [row(name, 0.9 + k / 100, 0.1 + shift), row(name, 0.8, 0.3 + shift)]
            rows += [row(name, 0.8, 0.4, kind="untargeted"), row(name, 0.9, 0.5 + k / 100, seen=False)]
        return {"study": {"config": {"model": model, "seed": seed}}, "measured": rows}

    lines = tables.KINDS["means"]({"rows": [study("a", 0, 0.0), study("b", 1, 0.2)]}).splitlines()
    assert lines[0] == "| detector | a, seed 0 | b, seed 1 |"
    assert lines[2] == "| MLP, L2 | .850, .800; 20 / 40 / 50 % | .850, .800; 40 / 40 / 50 % |"
    assert lines[7].startswith("| **MLP and logistic regression, both** | .863, .800; 20 / 40 / 55 % |")


def test_calibrated_tells_the_thresholds_apart():
    groups = ("seen targeted", "seen untargeted", "unseen")

    def limit(source, nominal, flagged, share):
        alarms = {"flagged": flagged, "of": 1000, "share": flagged / 1000, "low": 0.0, "high": 0.5}
        named = {"other people of LFW": alarms, "photographs": alarms | {"flagged": flagged + 1, "of": 76}}
        shown = dict(zip(groups, (share, share + 0.01, share + 0.02), strict=True))
        return {"threshold_from": source, "nominal": nominal, "false_alarms": named, "attacks_flagged": shown}

    thresholds = [limit("fit", 0.05, 99, 0.9), limit("fit", 0.01, 11, 0.1), limit("calibrated", 0.01, 22, 0.2)]
    strict = [{"rate": rate, "people": 1000, "found": dict.fromkeys(groups, rate)} for rate in (0.001, 0.05)]
    one = {"label": "mlp-centroid-l2-relative", "thresholds": thresholds, "at_false_alarms_on_other_people": strict}
    made = tables.KINDS["calibrated"]({"rows": [{"model": "m", "best": one["label"], "detectors": [one]}]})
    lines = made.splitlines()
    assert lines[0].endswith("| calibrated: attacks | attacks, at 0.1 % | attacks, at 5 % |")
    expected = "| m, MLP, L2, chosen | 1.1 % | 10 / 11 / 12 % | 22 of 1,000: 2.2 % [0.0, 50.0] | "
    expected += "23 of 76: 2.2 % [0.0, 50.0] | 20 / 21 / 22 % | 0 / 0 / 0 % | 5 / 5 / 5 % |"
    assert lines[2] == expected
