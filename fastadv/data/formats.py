"""The format of an image by the first bytes of its file."""

from __future__ import annotations

import re
from functools import cache

from fastadv.data.bare import PNG_SIGNATURE

HEAD = 4096  # bytes that tell the format and the depth of an image

#: The formats that are read, for messages.
READ_FORMATS = "JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM"
_READ = frozenset({"JPEG", "PNG", "BMP", "WebP", "TIFF", "AVIF", "PPM"})
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
# in this order: an AVIF also names mif1
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "RAW"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC")
_MOST_BRANDS = 32


def sniff(head: bytes) -> str | None:
    """The format of an image by the first bytes of its file, or None where they are of no image that is known.

    The formats that are read are JPEG (also with further pictures behind the first, as phones write it), PNG, BMP,
    WebP, TIFF, AVIF, PPM, and HEIC where pillow-heif is installed: `readable` tells them from the others.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and len(head) >= min(_box(head), HEAD):  # one that is cut here holds no picture
        brands = {head[8:12]} | {head[k : k + 4] for k in range(16, min(_box(head), 4 * _MOST_BRANDS), 4)}
        return next((name for brand, name in _BRANDS.items() if brand in brands), None)
    if head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PPM" if _PPM_HEAD.match(head) else None


def _box(head: bytes) -> int:
    """The length of the first box."""
    return int.from_bytes(head[:4], "big")


def readable(format: str | None) -> bool:
    """Whether images of a format that `sniff` names are read."""
    return format in _READ or (format == "HEIC" and reads_heic())


@cache
def reads_heic() -> bool:
    """Whether Pillow reads HEIC: it does with pillow-heif (the extra ``heic``), which is registered with it here."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def advice(format: str) -> str:
    """What helps with an image of a format that is not read."""
    save = "save it as PNG or JPEG"
    return f"pip install 'fastadv[heic]', or {save}" if format == "HEIC" else save
