"""``fastadv serve``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from fastadv.cli.fields import takes_groups
from fastadv.cli.guarding import GuardOptions, GuardPrecision, Network
from fastadv.cli.options import Device
from fastadv.core.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from fastadv.detection.service_config import ServiceConfig


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What the service accepts and keeps."""

    panel: ClassVar[str] = "Limits"

    max_batch: Annotated[int, Option(help="Evaluate at most this many images in one forward pass.")] = 16
    max_wait_ms: Annotated[float, Option(help="Wait at most this long for further images of a forward pass.")] = 5.0
    max_queue: Annotated[
        int, Option(help="Refuse requests above this number of waiting images or of open requests.")
    ] = 256
    max_buffered_mib: Annotated[
        float | None,
        Option(help="Refuse requests while the open ones hold this many MiB (default: 256, or --max-mib)."),
    ] = None
    max_images: Annotated[int, Option(help="Accept at most this many images in one request.")] = 32
    max_mib: Annotated[float, Option(help="Accept at most this many MiB in one request.")] = 8.0
    max_megapixels: Annotated[float, Option(help="Accept at most this many megapixels in one image.")] = 16.0
    max_request_megapixels: Annotated[
        float, Option(help="Accept at most this many megapixels in all images of one request.")
    ] = 32.0
    max_parts: Annotated[
        int, Option(help="Accept at most this many PNG chunks, JPEG segments, TIFF tags and AVIF boxes in one request.")
    ] = 16_384
    max_connections: Annotated[
        int | None,
        Option(help="Keep at most this many connections open (default: as many as 'ulimit -n' allows, at most 1000)."),
    ] = None
    head_timeout: Annotated[
        float, Option(help="Close a connection that sends no whole request head in this many seconds.")
    ] = 10.0
    timeout: Annotated[
        float, Option(help="Allow a body this many seconds to arrive, and the answer as many again.")
    ] = 10.0
    drain: Annotated[float, Option(help="Allow open requests this many seconds to end when the server is stopped.")] = (
        30.0
    )

    drift_window: Annotated[
        int, Option(help="Compare the last N scores with the detector's calibration set (/metrics).")
    ] = 1000

    def build(self) -> ServiceConfig:
        """The limits, in the units of the service."""
        from fastadv.data.images import MAX_PIXELS
        from fastadv.detection.service_config import ServiceConfig

        _check("--max-wait-ms", self.max_wait_ms, 0, 60_000)
        _check("--max-mib", self.max_mib, 0.001, 1024)
        buffered = max(256.0, self.max_mib) if self.max_buffered_mib is None else self.max_buffered_mib
        _check("--max-buffered-mib", buffered, self.max_mib, 1e6, "--max-mib, ")
        _check("--max-megapixels", self.max_megapixels, 0.001, MAX_PIXELS / 1e6)
        _check("--max-request-megapixels", self.max_request_megapixels, self.max_megapixels, 1e6, "--max-megapixels, ")
        return ServiceConfig(
            max_batch=self.max_batch,
            max_wait=self.max_wait_ms / 1e3,
            max_queue=self.max_queue,
            max_images=self.max_images,
            max_bytes=round(self.max_mib * 2**20),
            max_pixels=round(self.max_megapixels * 1e6),
            max_request_pixels=round(self.max_request_megapixels * 1e6),
            max_parts=self.max_parts,
            max_buffered=round(buffered * 2**20),
            max_connections=self.max_connections,
            head_timeout=self.head_timeout,
            timeout=self.timeout,
            drain=self.drain,
            drift_window=self.drift_window,
        )


@takes_groups
def serve(
    given: Network,
    detector: GuardOptions,
    limits: LimitOptions,
    host: Annotated[str, Option(help="Listen on this address; 0.0.0.0 means all of the machine's.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Listen on this port; 0 means any free one.")] = 8000,
    classes: Annotated[
        Path | None,
        Option(help="Read the name of each logit from this JSON list, such as classes.json of 'detect fit'."),
    ] = None,
    token_file: Annotated[
        Path | None,
        Option(
            help="Require 'Authorization: Bearer TOKEN' with the token in this file, except for /healthz and /readyz "
            "(default: the variable FASTADV_TOKEN, or no token)."
        ),
    ] = None,
    precision: Annotated[GuardPrecision, Option(help="Compute the backbone in this precision.")] = GuardPrecision.fp32,
    device: Device = "cpu",
) -> None:
    """Serve a network and its detector over HTTP: send aligned faces, receive embedding, class and adversarial score.

    For a study of 'fastadv detect fit' give --detector study/detectors/NAME.safetensors and, where it trained a class
    head, --weights study/head.safetensors --classes study/classes.json.

    Example: fastadv serve --model synth-vgg --detector detector.safetensors

    Then: curl --data-binary @face.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/faces
    """
    from fastadv.cli.console import errors
    from fastadv.detection.service import StuckError
    from fastadv.detection.service import serve as answer
    from fastadv.studies.detection.plan import read_classes

    if not host or any(map(str.isspace, host)):
        raise ArgumentError(f"--host: expected an address of this machine, got {host!r}")
    config = limits.build()
    token = _token(token_file)
    names = None if classes is None else read_classes(classes)
    guard, words = detector.open(given, precision=precision.value, device=device)

    def started(address: str) -> None:
        errors.print(f"listening on {address}; Ctrl-C stops", highlight=False, soft_wrap=True)
        if token is None and not (host.startswith("127.") or host in ("::1", "localhost")):
            errors.print("no token: every client that reaches this address is answered; see --token-file")
        errors.print(f"flags scores from {guard.threshold:.4g} on ({words})", highlight=False, soft_wrap=True)
        if guard.detector.thresholds is None or guard.detector.thresholds.scores is None:
            told = "no calibration set: no p-values and no drift; see 'fastadv detect calibrate'"
            errors.print(told, highlight=False, soft_wrap=True)
        errors.print(f"next: curl {address}/healthz", highlight=False, soft_wrap=True)

    try:
        left = answer(guard, config, classes=names, token=token, host=host, port=port, started=started)
    except StuckError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # the interpreter would wait for the thread
    rest = f"open requests that were not answered: {left}" if left else "every open request was answered"
    errors.print(f"stopped; {rest}", highlight=False)


def _check(option: str, value: float, least: float, most: float, least_name: str = "") -> None:
    """Refuse a number in the unit of its option: the service has others."""
    if not least <= value <= most:
        raise ArgumentError(f"{option}: expected a number from {least_name}{least:g} to {most:g}, got {value:g}")


def _token(file: Path | None) -> str | None:
    """The token that clients must send: never an argument, which other users of the machine could read."""
    from fastadv.detection.access import check_token

    if file is None:
        given = os.environ.get("FASTADV_TOKEN")
        return None if given is None else check_token(given.strip(), "FASTADV_TOKEN")
    try:
        text = file.read_bytes().decode("latin-1")
    except OSError as error:
        raise FileError(f"--token-file: expected a file that can be read, got {file}: {error.strerror}") from error
    return check_token(text.strip(), "--token-file")
