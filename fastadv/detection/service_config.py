"""The limits of the HTTP service."""

from __future__ import annotations

from dataclasses import dataclass

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.data.images import MAX_PIXELS
from fastadv.detection.drift import check_size

_DESCRIPTORS = 128  # that are kept for the process itself and for clients that are refused
_CONNECTIONS = 1000
_COUNTS = ("max_batch", "max_queue", "max_images", "max_bytes", "max_pixels")
_NEWER_COUNTS = ("max_request_pixels", "max_parts", "max_buffered")


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """The limits of the HTTP service; the options of ``fastadv serve`` set them.

    Attributes:
        max_batch: largest number of images in one forward pass.
        max_wait: seconds that an image may wait for others to share a pass with, 0 to 60.
        max_queue: largest number of images that are decoded or wait for a pass, and of requests whose body has arrived
            and that are being answered; more are refused (503).
        max_images: largest number of images in one request.
        max_bytes: largest size of a request's body in bytes.
        max_pixels: largest number of pixels of one image, at most 40,000,000.
        max_request_pixels: largest number of pixels of all images of one request.
        max_parts: largest number of PNG chunks, JPEG segments, TIFF tags and AVIF boxes in all images of one request.
        max_buffered: largest number of bytes of the bodies of all open requests; more are refused (503).
        max_connections: largest number of open connections; None for as many as the descriptors of the process allow,
            at most 1000.
        head_timeout: seconds from a connection's opening, or the last answer on it, to the end of a request's head.
        timeout: seconds that a request's body may take to arrive, and as many again until the answer.
        drain: seconds that open requests have to end when the service is stopped.
        drift_window: number of the last scores that are compared with the detector's calibration set.

    Raises:
        ValueError: a field is out of its range.
    """

    max_batch: int = 16
    max_wait: float = 0.005
    max_queue: int = 256
    max_images: int = 32
    max_bytes: int = 8 * 2**20
    max_pixels: int = 16_000_000
    max_request_pixels: int = 32_000_000
    max_parts: int = 16_384
    max_buffered: int = 256 * 2**20
    max_connections: int | None = None
    head_timeout: float = 10.0
    timeout: float = 10.0
    drain: float = 30.0
    drift_window: int = 1000

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name}: expected an integer >= 1, got {brief(value)}")
        if self.max_pixels > MAX_PIXELS:
            raise ArgumentError(f"max_pixels: expected at most {MAX_PIXELS}, got {self.max_pixels}")
        if self.max_images > self.max_queue:
            raise ArgumentError(f"max_images: expected at most max_queue, {self.max_queue}, got {self.max_images}")
        if not 0 <= self.max_wait <= 60:
            raise ArgumentError(f"max_wait: expected seconds in [0, 60], got {self.max_wait}")
        for name in ("timeout", "drain", "head_timeout"):
            if not 0.001 <= getattr(self, name) <= 3600:
                raise ArgumentError(f"{name}: expected seconds in [0.001, 3600], got {getattr(self, name)}")
        for name in (*_NEWER_COUNTS, *(() if self.max_connections is None else ("max_connections",))):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name}: expected an integer >= 1, got {value!r}")
        check_size("drift_window", self.drift_window)
        for name, least in (("max_request_pixels", "max_pixels"), ("max_buffered", "max_bytes")):
            if getattr(self, name) < getattr(self, least):
                raise ArgumentError(
                    f"{name}: expected at least {least}, {getattr(self, least)}, got {getattr(self, name)}"
                )

    @property
    def connections(self) -> int:
        """How many connections may be open at once."""
        if self.max_connections is not None:
            return self.max_connections
        try:
            from resource import RLIMIT_NOFILE, getrlimit
        except ImportError:  # not on Windows
            return _CONNECTIONS
        soft = getrlimit(RLIMIT_NOFILE)[0]
        return max(16, min(_CONNECTIONS, soft - _DESCRIPTORS)) if soft >= 0 else _CONNECTIONS  # -1: no limit
