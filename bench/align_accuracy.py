"""Verification with faces that MTCNN finds: LFW, beside its list of landmarks, and photographs with several faces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.data import LFW, FaceSource
from fastadv.data.face_search import FaceSearch, find_faces, with_faces
from fastadv.data.folder import Photographs
from fastadv.models import MTCNN, load
from fastadv.runs.inputs import open_pairs
from fastadv.studies.verify import verify

_NETWORKS = {
    "mobilefacenet": "mobilefacenet_relu6_ms1m_arcface",
    "edgeface_xs": "edgeface_xs_cosface",
    "mobileface_v2": "mobileface_v2",
}
_GIVEN = "the list"
_PASSES = {"MTCNN, first pass": False, "MTCNN, refined": True}


def run(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """A row for each data set, network and origin of the landmarks; `quick` leaves out LFW and two networks.

    The face of a picture of LFW is the most central one, that of a photograph the largest. The thresholds of a fold of
    LFW are those of the others; that of the photographs has a false accept rate of 0.1 % on LFW with its list (`quick`:
    as of LFW).
    """
    assert data is not None  # the entry needs data
    names = ["mobileface_v2"] if quick else list(_NETWORKS)
    models = {
        name: load(name, weights=data / "weights" / f"{_NETWORKS[name]}.safetensors", device=device) for name in names
    }
    detectors = {
        name: MTCNN(data / "weights" / "mtcnn.safetensors", device=device, refine=refine)
        for name, refine in _PASSES.items()
    }
    rows: list[Mapping[str, Any]] = []
    thresholds: dict[str, float] = {}
    for what, choice in (("photographs", "largest"),) if quick else (("lfw", "central"), ("photographs", "largest")):
        whole = LFW(data / what, size=None) if what == "lfw" else Photographs(data / what)
        listed = None if what == "lfw" else data / what / "master.csv"
        sources: dict[str, FaceSource] = {_GIVEN: LFW(data / what)} if what == "lfw" else {}
        for name, detector in detectors.items():
            found = find_faces(whole, FaceSearch(detector=detector, choice=choice))
            sources[name] = with_faces(whole, found, size=112)
        for landmarks, source in sources.items():
            pairs = open_pairs(source, file=listed)
            for network, model in models.items():
                at = None if what == "lfw" else thresholds.get(network)
                seen = verify(source, pairs, model, threshold=at)
                clean, accuracy = seen.clean, seen.clean.accuracy  # the mean of the folds
                if at is not None:
                    accuracy = float(((seen.scores >= at) == seen.same).mean())
                rows.append(
                    {
                        "data": what,
                        "network": network,
                        "landmarks": landmarks,
                        "pairs": len(pairs),
                        "wrong": round((1 - accuracy) * len(pairs)),
                        "accuracy": accuracy,
                        "auc": clean.auc,
                        "threshold": at,
                    }
                )
                if landmarks == _GIVEN:
                    thresholds[network] = clean.threshold_at_far_1e3
    return rows
