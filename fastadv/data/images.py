"""Image files and arrays: decoding, the 8-bit grid, encoding."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastadv.core.content import what_is_this
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.files import write_atomically
from fastadv.data import names

EXTENSIONS = names.READ
HEAD = 4096  # bytes that tell the format and the depth of an image
MAX_PIXELS = 40_000_000
MAX_BYTES = 256 * 2**20

# Only plain raster formats: some of Pillow's other readers start external programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
_MODES_8_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB, _PNG_GREY = 2, 0
_FILTER_UP = 2
_ORIENTATION = 0x0112  # of EXIF; from 5 on the picture is turned by a quarter

_READ_FORMATS = ("JPEG", "PNG", "BMP", "WebP", "PPM")
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
_PPM_HEAD = re.compile(rb"P[1-6][ \t\r\n#]")
_PPM_SPACE = re.compile(rb"(?:[ \t\r\n\v\f]+|#[^\r\n]*[\r\n])+")
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_SIGNATURE, "PNG"),
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


class ImageError(Error, ValueError):
    """A file that is not a usable image; the message names the file and the reason."""


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Reads an image file as 8-bit RGB.

    Grey, palette, CMYK and transparent images become RGB (transparent pixels over white) and the EXIF
    orientation is applied. Of an animation the first frame is taken.

    Args:
        path: A JPEG, PNG, BMP, WebP or PPM file of 8 bits per channel.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: The file is missing, no image, damaged, cut short, 16-bit, or unreasonably large.
    """
    return decode_image(read_bytes(path), path)


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


def read_head(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file, for `sniff`; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file; refuses what is no plain file or is larger than `MAX_BYTES`.

    Raises:
        ImageError: With the path and the reason.
    """
    path = Path(path)
    with open_file(path) as file:
        data = file.read(MAX_BYTES + 1)
    if not data:
        raise ImageError(f"{path}: the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path}: the file is larger than {MAX_BYTES // 2**20} MiB")
    return data


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """An image file, open for reading; what the operating system refuses, here or inside, names the file.

    Raises:
        ImageError: It cannot be read, or is no plain file.
    """
    try:
        if path.is_dir():
            raise ImageError(f"{path}: this is a folder, expected an image file")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: this is not a plain file, expected an image file")
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        if isinstance(error, ImageError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{path}: cannot be read: {reason}") from error


def read_size(file: IO[bytes], name: str | os.PathLike[str], *, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image as it is decoded, upright; only the head of the file is read.

    Args:
        file: Open, at its beginning, and able to seek.
        name: For the messages.
        most: The largest number of pixels that is allowed.

    Raises:
        ImageError: No image, 16-bit, or too large. What is damaged further on is found by `decode_image` only.
    """
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise ImageError(f"{os.fspath(name)}: the file is empty")
    with _opened(file, head, os.fspath(name), most) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1)
    return (height, width) if turned in (5, 6, 7, 8) else (width, height)


def decode_image(data: bytes, name: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decodes the bytes of an image file; as `read_image`, `name` is for the messages.

    Raises:
        ImageError: As for `read_image`.
    """
    with _opened(io.BytesIO(data), data[:HEAD], os.fspath(name), MAX_PIXELS) as image:
        rgb = _to_rgb(image)
    return np.array(rgb, dtype=np.uint8)


@contextlib.contextmanager
def _opened(file: IO[bytes], head: bytes, name: str, most: int) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet; what Pillow raises, here or inside, becomes an `ImageError`."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _refuse(image, head, name, most)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        found = sniff(head)
        what = f"{name}: not a JPEG, PNG, BMP, WebP or PPM image"
        if found is not None and not readable(found):
            raise ImageError(f"{what} but {found}; save it as PNG or JPEG") from error
        if found is not None:
            raise ImageError(f"{name}: the {found} image is damaged") from error
        raise ImageError(f"{what}, but {what_is_this(head).said()}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: more than {most} pixels") from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise ImageError(f"{name}: the image is damaged: {error}") from error


def _refuse(image: Image.Image, head: bytes, name: str, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise ImageError(f"{name}: {width}x{height} is more than {most} pixels")
    if width == 0 or height == 0:
        raise ImageError(f"{name}: the image has no pixels ({width}x{height})")
    # Pillow cuts 16-bit colour of PNG and PPM to 8 bits without a word
    if image.mode not in _MODES_8_BIT or _depth(head) == 16:
        raise ImageError(f"{name}: more than 8 bits per channel (mode {image.mode}); save it with 8 bits")


def _depth(head: bytes) -> int:
    """16 for a PNG or PPM of more than 8 bits per channel, else 8."""
    if head.startswith(_PNG_SIGNATURE):
        return 16 if head[24] == 16 else 8
    if head[:2] in (b"P2", b"P3", b"P5", b"P6"):
        fields = _PPM_SPACE.split(head[:HEAD], 4)  # kind, width, height, largest value
        return 16 if len(fields) > 3 and fields[3].isdigit() and int(fields[3]) > 255 else 8
    return 8


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
        over = upright.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return upright.convert("RGB")


def to_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """8-bit values to [0, 1]: `value / 255` in float32, channels first.

    Args:
        image: (H, W, 3) or (N, H, W, 3) uint8.

    Returns:
        (3, H, W) or (N, 3, H, W) float32, contiguous.

    Raises:
        ValueError: Another shape or type.
    """
    _check_pixels(image, dimensions=(3, 4))
    planar = np.ascontiguousarray(np.moveaxis(image, -1, -3), dtype=np.float32)
    return torch.from_numpy(planar / np.float32(255))


def to_uint8(image: torch.Tensor) -> NDArray[np.uint8]:
    """[0, 1] to 8-bit values, channels last: `round(255 * value)`, halves to even, never cut off.

    `to_uint8(to_tensor(a))` is `a` for every 8-bit image.

    Args:
        image: (3, H, W) or (N, 3, H, W), floating point, any device.

    Returns:
        (H, W, 3) or (N, H, W, 3) uint8, contiguous.

    Raises:
        ValueError: Another shape or type, a value outside [0, 1], or a NaN.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        raise ArgumentError(f"image: expected (3, H, W) or (N, 3, H, W) floats, got {tuple(image.shape)} {image.dtype}")
    # NumPy, not torch: in a writer's thread torch would start a second pool of threads for an image this small
    values = image.detach().to("cpu", torch.float32).numpy()
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (low >= 0 and high <= 1):  # also where a NaN makes both NaN
        raise ArgumentError(f"image: expected values in [0, 1], got {low:.6g} to {high:.6g}")
    rounded = np.rint(values * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(rounded, -3, -1))


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG file of an 8-bit RGB image; the same pixels always give the same bytes.

    Every row is stored as the difference to the row above, and zlib (level 1) only looks for runs: on an
    adversarial image that costs 3% in size against the default search, takes a quarter of Pillow's
    time, and runs beside other threads.

    Args:
        image: (H, W, 3) uint8.

    Raises:
        ValueError: Another shape or type, or no pixels.
    """
    _check_pixels(image, dimensions=(3,))
    return _png(np.ascontiguousarray(image), _PNG_RGB)


def encode_grey_png(image: NDArray[np.uint8]) -> bytes:
    """As `encode_png`, of one channel: (H, W) uint8."""
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise ArgumentError(f"image: expected (H, W) uint8 with pixels, got {image.shape} {image.dtype}")
    return _png(np.ascontiguousarray(image)[..., None], _PNG_GREY)


def _png(image: NDArray[np.uint8], colours: int) -> bytes:
    height, width, channels = image.shape
    rows = np.empty((height, 1 + channels * width), dtype=np.uint8)
    flat = image.reshape(height, channels * width)
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])  # modulo 256, as the format wants
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    body = packer.compress(rows.tobytes()) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path: str | os.PathLike[str], image: NDArray[np.uint8], *, fsync: bool = False) -> None:
    """Writes an 8-bit RGB image as a PNG file that is either whole or absent.

    Args:
        path: The file; its folder must exist.
        image: (H, W, 3) uint8.
        fsync: Wait until the bytes are on the disk.

    Raises:
        ValueError: Another shape or type.
        OSError: With the file's name.
    """
    write_atomically(path, encode_png(image), fsync=fsync)


def _check_pixels(image: Any, *, dimensions: tuple[int, ...]) -> None:
    if not isinstance(image, np.ndarray):
        raise ArgumentError(f"image: expected a NumPy array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in dimensions or image.shape[-1] != 3 or 0 in image.shape[-3:]:
        wanted = " or ".join("(H, W, 3)" if n == 3 else "(N, H, W, 3)" for n in dimensions)
        raise ArgumentError(f"image: expected {wanted} uint8 with pixels, got {image.shape} {image.dtype}")
