"""What the service tells Prometheus of scores, embeddings and drift; and that none of it changes its health."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")

from prometheus_client import generate_latest

from fastadv.data.images import encode_png, to_tensor
from fastadv.detection.guard import Guard
from fastadv.detection.service_metrics import Metrics


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def numbers(text):
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] not in "#")}


def calibrated(guard, *, shift=0.0):
    """The guard, calibrated on the scores of images like those that are sent, or on shifted ones."""
    scores = guard(torch.stack([to_tensor(pixels(i)) for i in range(100, 220)])).scores
    return Guard(model=guard.model, detector=guard.detector.calibrated(scores + shift))


def send(asgi, guard, count, **limits):
    async def work(app):
        asked = [asgi.ask(app, "POST", "/v1/faces", encode_png(pixels(i)), "image/png") for i in range(count)]
        found = [said["faces"][0] for _, said in await asyncio.gather(*asked)]
        health = [await asgi.ask(app, "GET", path) for path in ("/healthz", "/readyz")]
        return found, numbers((await asgi.ask(app, "GET", "/metrics"))[1]), health

    return asgi.during(guard, work, **limits)


def test_answers_and_histograms_hold_scores_p_values_and_norms(asgi, guard):
    known = calibrated(guard)
    found, told, _ = send(asgi, known, 30)
    verdicts = known(torch.stack([to_tensor(pixels(i)) for i in range(30)]))
    for face, score, flagged in zip(found, verdicts.scores, verdicts.flagged, strict=True):
        assert face["score"] == pytest.approx(float(score), abs=1e-5)
        assert (face["p_value"] <= 0.01) == face["flagged"] == bool(flagged)
    right = {"fastadv_score": verdicts.scores, "fastadv_p_value": verdicts.p_values}
    for name, values in {**right, "fastadv_embedding_norm": verdicts.norms}.items():
        assert told[f"{name}_count"] == told[f'{name}_bucket{{le="+Inf"}}'] == 30
        bounds = [k for k in told if k.startswith(f"{name}_bucket") and "+Inf" not in k]
        for key in bounds:
            bound = float(key.split('"')[1])
            if float((values - bound).abs().min()) > 1e-4:  # a pass of another size may round to another bucket
                assert told[key] == int((values <= bound).sum()), key
    assert told["fastadv_embedding_norm_sum"] == pytest.approx(float(verdicts.norms.sum()), rel=1e-4)
    assert told["fastadv_drift_images"] == 30


def test_drift_is_told_and_changes_no_health(asgi, guard):
    _, same, healthy = send(asgi, calibrated(guard), 60)
    _, moved, also = send(asgi, calibrated(guard, shift=100.0), 60)
    assert same["fastadv_drift_p_value"] > 0.01
    assert (moved["fastadv_drift_statistic"], moved["fastadv_drift_images"]) == (1.0, 60)
    assert moved["fastadv_drift_p_value"] < 1e-12
    assert healthy == also == [(200, {"status": "ok"}), (200, {"status": "ready"})]


def test_the_window_is_the_last_scores(asgi, guard):
    assert send(asgi, calibrated(guard), 40, drift_window=25)[1]["fastadv_drift_images"] == 25
    few = send(asgi, calibrated(guard), 19)[1]
    assert not [name for name in few if name.startswith("fastadv_drift")]


def test_without_a_calibration_set_there_are_no_p_values_and_no_drift(asgi, guard):
    found, told, health = send(asgi, guard, 25)
    assert {face["p_value"] for face in found} == {None}
    assert not [name for name in told if name.startswith(("fastadv_drift", "fastadv_p_value"))]
    assert told["fastadv_score_count"] == told["fastadv_embedding_norm_count"] == 25
    assert health[0][0] == 200


def test_counts_under_threads(guard):
    known = calibrated(guard)
    metrics = Metrics(lambda: 0, known.detector.thresholds, 1000)
    verdicts = known(torch.stack([to_tensor(pixels(i)) for i in range(6)]))
    broken = replace(verdicts, scores=torch.full((6,), torch.nan))  # no histogram takes what is no number

    def work(k):
        for _ in range(50):
            metrics.judged(broken if k == 0 else verdicts, 0.01)
            if k == 1:
                generate_latest(metrics.registry)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    told = numbers(generate_latest(metrics.registry).decode())
    assert told["fastadv_batch_images_sum"] == told["fastadv_embedding_norm_count"] == 8 * 50 * 6
    assert told["fastadv_score_count"] == told["fastadv_p_value_count"] == 7 * 50 * 6
    assert told["fastadv_p_value_sum"] == pytest.approx(7 * 50 * float(verdicts.p_values.sum()))
    assert told["fastadv_drift_images"] == 1000
