"""The report page: one HTML file that asks for nothing from anywhere."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from fastadv.core.errors import ArgumentError, MissingPackageError
from fastadv.report.parts import Page
from fastadv.report.svg import colour

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(page: Page) -> str:
    """The page as HTML: styles, figures and images inside; every text escaped; the same page, the same text.

    Raises:
        ImportError: jinja2 is not installed; the message says how to install it.
    """
    return _environment().get_template("page.html").render(page=page) + "\n"


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingPackageError(
            "report: expected the package jinja2, got no such package; pip install 'fastadv[report]'"
        ) from error
    made = Environment(
        loader=PackageLoader("fastadv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["data_uri"] = data_uri
    made.globals["colour"] = colour
    made.filters["svg_uri"] = lambda svg: _uri("svg+xml", svg.encode())
    return made


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image as a `data:` address, without loss: WebP, or PNG where Pillow has no WebP.

    Args:
        image: (H, W, 3) uint8.

    Raises:
        ValueError: Another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ArgumentError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    buffer = io.BytesIO()
    kind = "webp" if features.check("webp") else "png"
    options = {"lossless": True, "quality": 60, "method": 4} if kind == "webp" else {"optimize": True}
    Image.fromarray(image).save(buffer, kind, **options)
    return _uri(kind, buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def amplified(original: NDArray[np.uint8], changed: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The change made visible: `128 + factor * (changed - original)`, cut to 0..255; grey where nothing changed.

    Raises:
        ValueError: Images of different shapes.
    """
    if original.shape != changed.shape:
        raise ArgumentError(f"original, changed: expected one shape, got {original.shape} and {changed.shape}")
    difference = changed.astype(np.int32) - original.astype(np.int32)
    return np.clip(128 + factor * difference, 0, 255).astype(np.uint8)
