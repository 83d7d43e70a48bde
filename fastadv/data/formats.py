"""The format of an image by the first bytes of its file."""

from __future__ import annotations

import re

from fastadv.data.bare import PNG_SIGNATURE

HEAD = 4096  # bytes that tell the format and the depth of an image

_READ_FORMATS = ("JPEG", "PNG", "BMP", "WebP", "PPM")
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
_PPM_HEAD = re.compile(rb"P[1-6][ \t\r\n#]")
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"FUJIFILM", "RAW"),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "RAW"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC")


def sniff(head: bytes) -> str | None:
    """The format of an image by the first bytes of its file, or None where they are of no image that is known.

    The formats that are read are JPEG (also with further pictures behind the first, as phones write it), PNG, BMP, WebP
    and PPM: `readable` tells them from the others.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PPM" if _PPM_HEAD.match(head) else None


def readable(format: str | None) -> bool:
    """Whether images of a format that `sniff` names are read."""
    return format in _READ_FORMATS
