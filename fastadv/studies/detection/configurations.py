"""Which detectors a study fits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fastadv.ops.layers import DISTANCES, METRICS


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One of the detectors that are compared.

    Attributes:
        network: ``"lstm"``, ``"mlp"``, ``"linear"``, a logistic regression, or ``"mlp+linear"``: the mean of the scores
            of those two.
        representatives: ``"medoid"`` or ``"centroid"``.
        metric: ``"l2"``, ``"cosine"``, or ``"l2+cosine"``: the mean of the scores of those two.
        reading: ``"raw"``, the paper's, or ``"relative"``.
    """

    network: str
    representatives: str
    metric: str
    reading: str = "raw"

    @property
    def label(self) -> str:
        """``"lstm-medoid-cosine"``, ``"lstm-medoid-cosine-relative"``: also the name of its file."""
        suffix = "" if self.reading == "raw" else f"-{self.reading}"
        return f"{self.network}-{self.representatives}-{self.metric}{suffix}"


_NETWORKS = {
    "raw": [*itertools.product(("lstm", "mlp"), METRICS)],
    "relative": [*itertools.product(("lstm", "mlp", "linear"), DISTANCES), ("mlp+linear", "l2+cosine")],
}
CONFIGURATIONS = {
    reading: tuple(
        Configuration(network=network, representatives=representatives, metric=metric, reading=reading)
        for (network, metric), representatives in itertools.product(networks, ("medoid", "centroid"))
    )
    for reading, networks in _NETWORKS.items()
}
"""By reading; those of ``raw`` in the order of the paper's tables."""
