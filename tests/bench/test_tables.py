"""The tables of the documentation are those of the committed results, to the letter."""

import json

import pytest

from bench import tables

ROW = {
    "network": "net",
    "attack": "pgd",
    "version": None,
    "images": 256,
    "rounds": 3,
    "batch": 16,
    "images_per_s": 10.0,
    "low": 9.0,
    "high": 11.0,
    "forwards_per_image": 40.0,
    "backwards_per_image": 40.0,
    "operations_per_tick": 12.0,
    "syncs_per_tick": 0.0,
    "peak_mib": 100.0,
    "success": 1.0,
    "success_float": None,
    "norm": "Linf, grey levels",
    "median_norm": 8.0,
    "times_fastest_peer": 1.0,
    "lost": False,
}
ROWS = [
    ROW | {"run": "plain loop"},
    ROW | {"run": "foolbox", "version": "3.3.4", "images_per_s": 20.0, "lost": True},
    ROW | {"run": "fastadv", "images_per_s": 21.34, "times_fastest_peer": 2.134},
    ROW | {"run": "fastadv, bf16", "images_per_s": 0.0345, "times_fastest_peer": 0.00345},
]


def test_the_pages_have_the_tables_of_their_results():
    assert tables.main(["--check"]) == 0


def test_a_summary_compares_with_the_fastest_other_whether_it_is_lost_or_not():
    rows = [*ROWS, ROW | {"run": "fastadv, 1 x 60", "images_per_s": 40.0}, ROW | {"run": "fastadv.compat.torchattacks"}]
    text = tables.peers_summary({"rows": rows})
    assert "| PGD, net | foolbox, 20, lost | 21.3 (1.07×) | 0.0345 (0.00173×) |  | 1 x 60: 40 (2×) |" in text


def test_the_whole_table_has_a_row_a_run():
    text = tables.peers({"rows": ROWS})
    assert text.startswith("## PGD, net\n\nThe norm is L∞ in grey levels.\n")
    assert "| foolbox 3.3.4 | 20 (9 to 11) |" in text
    assert "| 100 % of 256 | 8 | lost |" in text


def test_a_marked_table_is_made_anew_and_the_rest_stays(tmp_path, monkeypatch):
    row = {"axis": "slots", "value": 1024, "ms_per_image": 5, "images_per_s": 200.0, "page_faults_per_image": 3.25}
    (tmp_path / "r.json").write_text(json.dumps({"rows": [row | {"peak_mib": 1.5}, row | {"peak_mib": None}]}))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    page = "before\n<!-- table: growth from r.json -->\nold\n<!-- end of table -->\nafter\n"
    made = tables.rewritten(page)
    assert "| page faults an image | peak, MiB more |\n" in made
    assert "| slots: 1,024 | 5 | 200 | 3.25 | +2 |\n| slots: 1,024 | 5 | 200 | 3.25 |  |\n" in made
    assert made.startswith("before\n<!-- table: growth from r.json -->\n\n|")
    assert made.endswith("|\n\n<!-- end of table -->\nafter\n")
    assert tables.rewritten(made) == made


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (1.0, "1"),
        (123.456, "123"),
        (1234.5, "1,230"),
        (0.01234, "0.0123"),
        (99950.0, "100,000"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_a_reader_has_a_row_with_the_inputs_of_both_engines():
    row = {"target": "png", "engine": "mutations", "inputs": 40_000, "accepted": 1000, "refused": 39_000, "finds": 0}
    rows = [row | {"edges": None}, row | {"engine": "coverage", "inputs": 2000, "refused": 1000, "edges": 1234}]
    text = tables.fuzz({"rows": [*rows, row | {"target": "bmp", "inputs": 7, "finds": 2, "edges": None}]})
    assert "| png | 40,000 | 2,000 | 2,000 | 40,000 | 0 | 1,234 |\n" in text
    assert "| bmp | 7 | 0 | 1,000 | 39,000 | 2 |  |\n" in text
    assert "| all | 40,007 | 2,000 | 3,000 | 79,000 | 2 |  |\n" in text


def test_torture_adds_up_what_it_found():
    row = {"command": "clean", "words": "verify --pairs {pairs}", "kills": 10, "changes": 20, "places": 9, "faults": 63}
    text = tables.torture({"commands": [row | {"problems_found": 0}, row | {"problems_found": 1, "kills": 1000}]})
    assert "| `verify` (clean) | 10 | 20 | 9 | 63 | 0 |\n" in text
    assert text.endswith("| all | 1,010 | 40 | 18 | 126 | 1 |\n")
