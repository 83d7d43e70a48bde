"""The kNN score on the page of a detection study: layers against each other, then a table for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.core import text
from fastadv.report.pages.frame import section
from fastadv.report.parts import Section, Table
from fastadv.studies.detection.knn import AGGREGATE, ERRORS, KNN_NAMES

_PROCESSINGS = {"none": "none", "l2": "L2", "pca": "PCA + whitening"}
_LAST = (AGGREGATE, ERRORS)
Rows = Sequence[Mapping[str, Any]]


def knn_section(rows: Rows) -> Section:
    """The section, from the ``knn`` of an evaluation; empty where there are no rows."""
    return section(
        "kNN score",
        *([knn_layers(rows), *_tables(rows)] if rows else []),
        lead="Accuracy at the equal error rate of natural images that are classified rightly against each column. "
        "In brackets the share that is refused where 98 % of the former are kept; a dash: they are too few.",
    )


def knn_columns(rows: Rows) -> list[str]:
    """The attacks, then the aggregate, then the natural images that are classified wrongly."""
    names = list(rows[0]["accuracy"])
    return [*(name for name in names if name not in _LAST), *(name for name in _LAST if name in names)]


def knn_layers(rows: Rows) -> Table:
    """The aggregate's accuracy by layer: for each processing the mean of the weightings."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["layer"], {}).setdefault(row["processing"], []).append(row["accuracy"][AGGREGATE])
    kept = {row["layer"]: row["components"] for row in rows if row["components"] is not None}
    made = tuple(
        (layer, *(text.percent(sum(values) / len(values)) for values in means.values()), str(kept[layer]))
        for layer, means in found.items()
    )
    header = ("layer", *(_PROCESSINGS[name] for name in next(iter(found.values()))), "components")
    first = rows[0]
    return Table(
        header=header,
        rows=made,
        note=f"Mean of the three weightings, for the aggregate: {' and '.join(first['aggregate'])}; "
        f"{first['images'][AGGREGATE]} images against {first['natural']} natural ones.",
    )


def _tables(rows: Rows) -> list[Table]:
    columns = knn_columns(rows)
    header = ("processing, score", *(f"{name} ({rows[0]['images'][name]})" for name in columns))

    def told(row: Mapping[str, Any]) -> tuple[str, ...]:
        kind = f"{_PROCESSINGS[row['processing']]}, {KNN_NAMES[row['weighting']]}"
        return kind, *(f"{text.percent(row['accuracy'][c])} ({text.percent(row['refused'][c], 0)})" for c in columns)

    return [
        Table(
            header=header,
            rows=tuple(told(row) for row in rows if row["layer"] == layer),
            note=f"Layer {layer}; the number of images in brackets.",
        )
        for layer in dict.fromkeys(row["layer"] for row in rows)
    ]
