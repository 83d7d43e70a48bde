"""The metrics of the service for Prometheus: requests, times, scores, embeddings, drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from fastadv.detection.calibration import Thresholds
from fastadv.detection.drift import DriftWindow
from fastadv.detection.guard import Verdicts

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
_SCORES = (-50, -20, -10, -8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 8, 10, 20, 50)
_P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: The reasons for which a request or a connection is refused or ended.
LIMITS = (
    "not_ready",
    "open_requests",
    "queued_images",
    "buffered_bytes",
    "body_size",
    "body_timeout",
    "answer_timeout",
    "memory",
    "client_gone",
    "connections",
    "head_timeout",
    "unread_answer",
    "not_http",
    "stopping",
    "token",
)
_NORMS = tuple(2 ** (k / 2) for k in range(-2, 17))  # 0.5 to 256


class Metrics:
    """The metrics of one service, in a registry of its own, so that two services in one process stay separate."""

    def __init__(
        self,
        waiting: Callable[[], int],
        thresholds: Thresholds | None,
        window: int,
        answering: Callable[[], int] = lambda: 0,
    ) -> None:
        """Begin with all counts at 0.

        Args:
            waiting: Returns the number of images that wait for a forward pass.
            thresholds: The detector's thresholds; scores are compared with their calibration set, if they have one.
            window: Number of the last scores that are compared.
            answering: Returns the number of requests that are being answered.
        """
        self.registry = kept = CollectorRegistry()
        self.requests = Counter("fastadv_requests", "Requests for verdicts.", ["status"], registry=kept)
        self._refused = Counter(
            "fastadv_refused", "Requests and connections that a limit refused or ended.", ["limit"], registry=kept
        )
        for limit in LIMITS:
            self._refused.labels(limit)
        self.images = Counter("fastadv_images", "Images that were judged.", ["flagged"], registry=kept)
        for flagged in ("true", "false"):  # from the start: a rate does not count what a series is born with
            self.images.labels(flagged)
        self.seconds = Histogram(
            "fastadv_request_seconds", "From the head of a request to its answer.", buckets=_SECONDS, registry=kept
        )
        self.model = Histogram("fastadv_model_seconds", "Of one forward pass.", buckets=_SECONDS, registry=kept)
        self.batch = Histogram("fastadv_batch_images", "Images in one forward pass.", buckets=_IMAGES, registry=kept)
        queue = Gauge("fastadv_queue_images", "Images that wait for a forward pass.", registry=kept)
        queue.set_function(waiting)
        requests = Gauge("fastadv_open_requests", "Requests that are being answered.", registry=kept)
        requests.set_function(answering)
        self._scores = Histogram(
            "fastadv_score", "The detector's logit: higher for what looks adversarial.", buckets=_SCORES, registry=kept
        )
        self._norms = Histogram(
            "fastadv_embedding_norm", "Of the features before they are normalised.", buckets=_NORMS, registry=kept
        )
        self._p_values: Histogram | None = None
        self._drift: DriftWindow | None = None
        if thresholds is not None and thresholds.scores is not None:
            about = "Share of the calibration images that look at least as adversarial; uniform without drift."
            self._p_values = Histogram("fastadv_p_value", about, buckets=_P_VALUES, registry=kept)
            self._drift = DriftWindow(thresholds.scores, size=window)
            kept.register(_DriftCollector(self._drift))

    def refuse(self, limit: str) -> None:
        """Count one refusal by one of `LIMITS`."""
        assert limit in LIMITS  # each value is a series that is kept for good
        self._refused.labels(limit).inc()

    def judged(self, verdicts: Verdicts, seconds: float) -> None:
        """Add the verdicts of a forward pass, and the seconds that it took."""
        scores, p_values = verdicts.scores.tolist(), verdicts.p_values
        self.model.observe(seconds)
        self.batch.observe(len(scores))
        _observe(self._scores, scores)
        _observe(self._norms, verdicts.norms.tolist())
        if self._p_values is not None and self._drift is not None and p_values is not None:
            _observe(self._p_values, p_values.tolist())
            self._drift.add(scores)


class _DriftCollector:
    """Tests the window for drift when the metrics are read, not at each request for verdicts."""

    def __init__(self, window: DriftWindow) -> None:
        self._window = window

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Three gauges, which have no value while the window holds too few scores."""
        found = self._window.test()
        for name, about in (
            ("statistic", "Kolmogorov-Smirnov distance of the last scores from the calibration set."),
            ("p_value", "Chance of such a distance without drift, for independent images."),
            ("images", "Scores that are compared."),
        ):
            family = GaugeMetricFamily(f"fastadv_drift_{name}", about)
            if found is not None:
                family.add_metric([], getattr(found, name))
            yield family


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    for value in values:
        if math.isfinite(value):  # one NaN would make the sum of all one
            histogram.observe(value)
