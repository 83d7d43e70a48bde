"""Requests, answers and errors of the HTTP service, for its OpenAPI description. Needs the extra ``serve``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.uploads import BYTES, FORM


class Prediction(BaseModel):
    """The class that the model's head chose."""

    index: int = Field(description="Of the class, from 0.")
    name: str | None = Field(description="Of the class, where the server was told the names.")
    confidence: float | None = Field(description="Its softmax, in [0, 1].")


class JudgedFace(BaseModel):
    """The result for one image."""

    name: str | None = Field(description="The file name that came with it.")
    score: float | None = Field(description="The detector's logit: higher for what looks adversarial.")
    p_value: float | None = Field(
        description="Share of natural images that look at least as adversarial; null without a calibration set."
    )
    flagged: bool = Field(description="The score is at or above the threshold, or no number.")
    prediction: Prediction | None = Field(description="Null without a class head.")
    embedding: list[float] | None = Field(description="Of norm 1; only with ?embedding=true.")


class Answer(BaseModel):
    """The answer to a request."""

    model: str
    threshold: float
    faces: list[JudgedFace]


class Status(BaseModel):
    """The process works, or is ready."""

    status: str


class Failure(BaseModel):
    """An error."""

    detail: str


def request_body(config: ServiceConfig) -> dict[str, Any]:
    """The bodies that ``POST /v1/faces`` accepts."""
    binary = {"type": "string", "format": "binary", "maxLength": config.max_bytes}
    content: dict[str, Any] = {kind: {"schema": binary} for kind in ("image/*", BYTES)}
    images = {"type": "array", "items": binary, "minItems": 1, "maxItems": config.max_images}
    form = {"type": "object", "properties": {"images": images}, "required": ["images"]}
    content[FORM] = {"schema": form, "encoding": {"images": {"contentType": f"image/*, {BYTES}"}}}
    return {"required": True, "content": content}


def failures(config: ServiceConfig, *, faces: bool = False, token: bool = False) -> dict[int | str, dict[str, Any]]:
    """The errors that a path answers with, and the limits that cause them.

    Args:
        config: The limits.
        faces: Whether the path is ``POST /v1/faces``, which reads a body.
        token: Whether the path requires the token.
    """
    told = {
        400: "Not HTTP/1.1, or a head of more than 16 KiB.",
        408: f"The head of the request took more than {config.head_timeout:g} s to arrive.",
        500: "An error of the server, whose log has the reason.",
        503: f"Stopping, or {config.connections} connections are open.",
    }
    if faces:
        told[400] += (
            f" A damaged, empty or incomplete body, form or image; more than {config.max_images} images; an image of "
            f"more than {config.max_pixels} pixels."
        )
        told[408] += f" The body took more than {config.timeout:g} s."
        told[413] = (
            f"A body of more than {config.max_bytes} bytes; more than {config.max_request_pixels} pixels, or "
            f"{config.max_parts} chunks and segments, in all images."
        )
        told[415] = "Not an image of a supported format."
        told[422] = "A wrong argument, or an unknown claimed identity."
        told[503] += (
            f" Starting; {config.max_queue} requests are being answered, or as many images wait; the bodies of "
            f"all requests have {config.max_buffered} bytes; no answer within {config.timeout:g} s; no memory is left."
        )
    if token:
        told[401] = "No token, or a wrong one."
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": text} for status, text in sorted(told.items())
    }
    seconds = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
    found[503]["headers"] = {"Retry-After": seconds}
    if token:
        found[401]["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}}
    return found
