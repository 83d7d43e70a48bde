"""Manifest rows for tests."""

from __future__ import annotations

from typing import Any

from fastadv.data import ManifestRow, face_id


def row(name: str, /, **changes: Any) -> ManifestRow:
    """A complete row with some fields changed."""
    values: dict[str, Any] = {
        "name": name,
        "id": face_id(name),
        "goal": "impersonate",
        "target": "Q/Q_0001",
        "attack": "fim",
        "eps": 0.1 + 0.2,
        "steps": 13,
        "ticks": 14,
        "success": True,
        "success_float": False,
        "linf": 8 / 255,
        "l2": 1.25,
        "score_before": -0.1,
        "score_after": 1 / 3,
        "metric": "cosine",
        "seed": 2**64 - 1,
        "source_hash": "ab" * 32,
        "flags": "zero_gradient;met_at_start",
        "nonfinite": 3,
    }
    return ManifestRow(**{**values, **changes})
