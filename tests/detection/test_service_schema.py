"""The API's description of itself: complete, and what schemathesis generates from it is answered as it says."""

from __future__ import annotations

import collections
import time

import pytest
from image_bytes import drawn

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.detection.service import ServiceConfig, create_app

TOKEN = "correct-horse-battery-staple"
FACES = "POST /v1/faces"
OPEN = {"GET /healthz", "GET /readyz"}


def described(asgi, guard, **limits):
    config = {"token": TOKEN, **limits}
    headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
    return asgi.during(guard, lambda app: asgi.ask(app, "GET", "/openapi.json", headers=headers), **config)[1]


def test_every_answer_is_described(asgi, guard):
    schema = described(asgi, guard)
    found = {
        f"{method.upper()} {path}": set(about["responses"])
        for path, methods in schema["paths"].items()
        for method, about in methods.items()
    }
    always = {"200", "400", "408", "500", "503"}
    assert found == {
        FACES: always | {"401", "413", "415", "422"},
        "GET /metrics": always | {"401"},
        **dict.fromkeys(OPEN, always),
    }
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            for status, answer in about["responses"].items():
                (kind,) = answer["content"]
                if status != "200":
                    reference = answer["content"]["application/json"]["schema"]["$ref"]
                    assert (kind, reference) == ("application/json", "#/components/schemas/Failure")
            assert about["responses"]["503"]["headers"]["Retry-After"]["required"]
            assert ("security" in about) == (f"{method.upper()} {path}" not in OPEN)
    assert schema["components"]["schemas"]["Failure"]["required"] == ["detail"]


def test_the_limits_are_in_the_description(asgi, guard):
    limits = {"max_images": 5, "max_bytes": 4321, "max_pixels": 9876, "timeout": 1.5, "max_queue": 77, "max_parts": 55}
    about = described(asgi, guard, **limits)["paths"]["/v1/faces"]["post"]
    content = about["requestBody"]["content"]
    images = content["multipart/form-data"]["schema"]["properties"]["images"]
    assert (images["maxItems"], images["items"]["maxLength"], content["image/*"]["schema"]["maxLength"]) == (
        5,
        4321,
        4321,
    )
    for status, told in {
        "400": ("5", "9876"),
        "408": ("1.5 s",),
        "413": ("4321", "55"),
        "503": ("77", "1.5 s"),
    }.items():
        for number in told:
            assert f" {number}" in about["responses"][status]["description"]


def outcomes(guard, *, examples, token=None, seed=0):
    """What was answered to each operation, and what schemathesis holds against it."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import strategies as st
    from schemathesis.engine import Status, events, from_schema
    from schemathesis.python import asgi

    app = create_app(guard, ServiceConfig(max_wait=0.0, max_pixels=1000, max_images=3), token=token)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    files = [
        drawn(1),
        drawn(2, format="JPEG"),
        drawn(3, format="BMP"),
        drawn(4, 40),
        drawn(5)[:90],
        b"no image",
    ]
    schemathesis.openapi.media_type("image/*", st.sampled_from(files), aliases=("image/png",))
    valid = {"expected-statuses": ["200", "400", "415", "422"]}  # any bytes are valid to a schema
    config = schemathesis.Config.from_dict(
        {
            "seed": seed,
            "headers": headers,
            "generation": {"max-examples": examples, "deterministic": True, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            "operations": [{"include-name": FACES, "checks": {"positive_data_acceptance": valid}}],
        }
    )
    statuses, problems = collections.defaultdict(collections.Counter), []
    try:
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=headers)
        while not app.state.service.ready:
            time.sleep(0.005)
        for event in from_schema(schema).execute():
            if isinstance(event, (events.NonFatalError, events.FatalError)):
                problems.append(str(event))
            elif isinstance(event, events.ScenarioFinished):
                for key, interaction in event.recorder.interactions.items():
                    if interaction.response is not None and key in event.recorder.cases:
                        label = event.recorder.cases[key].value.operation.label
                        statuses[label][interaction.response.status_code] += 1
                for checks in event.recorder.checks.values():
                    problems += [
                        f"{event.label}: {c.name}: {c.failure_info}" for c in checks if c.status != Status.SUCCESS
                    ]
    finally:
        asgi.shutdown_lifespans()
    return statuses, problems


def check(statuses, problems, token):
    assert problems == []
    assert {FACES, "GET /metrics", *OPEN} == set(statuses)
    for label, found in statuses.items():
        assert found[200] > 0, label
        assert not {status for status in found if status >= 500}, label
    assert min(statuses[FACES][status] for status in (200, 400, 415, 422)) > 0
    assert (statuses[FACES][401] > 0) == (token is not None)


@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "token"])
def test_generated_requests_are_answered_as_described(guard, token):
    check(*outcomes(guard, examples=15, token=token), token)


@pytest.mark.slow
def test_many_generated_requests_are_answered_as_described(guard, rounds):
    for seed in range(rounds):
        check(*outcomes(guard, examples=300, token=TOKEN, seed=seed), TOKEN)
