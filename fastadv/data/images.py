"""Image files and arrays: decoding, the 8-bit grid, encoding."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastadv.core.content import what_is_this
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically
from fastadv.data.bare import PNG_SIGNATURE, Bare, TooManyPartsError, bare_jpeg, orientation, webp_size
from fastadv.data.containers import bare_image
from fastadv.data.formats import HEAD, READ_FORMATS, advice, readable, sniff
from fastadv.data.image_files import MAX_BYTES, read_bytes
from fastadv.data.image_files import ImageError as ImageError
from fastadv.data.netpbm import NetpbmHead, netpbm_head, netpbm_pixels

MAX_PIXELS = 40_000_000

# Only plain raster formats: some of Pillow's other readers start external programs.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "AVIF")
_TELL_THEIR_TURN = ("WebP", "AVIF", "HEIC")  # in what Pillow finds
_MODES_8_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_PNG_RGB, _PNG_GREY = 2, 0
_FILTER_UP = 2
_QUARTER = 5  # the first orientation of EXIF that exchanges width and height
_FIRST = 1 << 18  # bytes of a file that `read_size` reads first
_STRIP = 1 << 20  # pixels that are converted at once
_SCANS = 10  # of a JPEG, that take the time of its pixels once: as many as a progressive one has
_BMP_RUNS = (1, 2)  # Pillow expands run lengths in Python


class BudgetError(ImageError):
    """Several images take more together than they may."""


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Reads an image file as 8-bit RGB.

    Grey, palette, CMYK and transparent images become RGB (transparent pixels over white) and the EXIF
    orientation is applied. Of an animation the first frame is taken.

    Args:
        path: A JPEG, PNG, BMP, WebP, TIFF or PPM file of 8 bits per channel, an AVIF, or a HEIC where pillow-heif is
            installed (10 bits of the last two become 8).

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: The file is missing, no image, damaged, cut short, 16-bit, or unreasonably large.
    """
    return decode_image(read_bytes(path), path)


class ImageBudget:
    """What the images of one request may take together, in whichever threads they are decoded.

    A part is a chunk of a PNG, a segment of a JPEG, a tag, strip or tile of a TIFF, a box of an AVIF or HEIC, or 16
    bytes or pixels of a BMP with run lengths: what costs a reader a step in Python, and a client hardly any bytes.
    """

    def __init__(self, *, pixels: int, parts: int) -> None:
        """Begin with nothing taken."""
        self.pixels, self.parts = pixels, parts
        self._left = {"pixels": pixels, "parts": parts}
        self._lock = threading.Lock()

    def take(self, what: Literal["pixels", "parts"], count: int) -> None:
        """Take a share.

        Raises:
            BudgetError: There is not as much left.
        """
        with self._lock:
            self._left[what] -= count
            left = self._left[what]
        if left < 0:
            shown = "pixels" if what == "pixels" else "chunks and segments"
            raise BudgetError(f"the images: expected at most {getattr(self, what)} {shown} in all of them, got more")


def read_size(file: IO[bytes], name: str | os.PathLike[str], *, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image as it is decoded, upright; of most files only the first 256 KiB are read.

    Args:
        file: Open, at its beginning.
        name: For the messages.
        most: The largest number of pixels that is allowed.

    Raises:
        ImageError: No image, 16-bit, or too large. What is damaged further on is found by `decode_image` only.
    """
    data = file.read(_FIRST)
    if not data:
        raise ImageError(f"{os.fspath(name)}: expected an image file, got an empty one")
    format = sniff(data)
    # a PNG may tell its orientation behind its pixels, a TIFF its size, and Pillow wants the others whole
    begun = format not in ("PNG", "WebP", "TIFF", "AVIF", "HEIC")
    if format == "JPEG":
        with contextlib.suppress(TooManyPartsError):
            begun = bare_jpeg(data, len(data)).scans > 0
    if not begun and len(data) == _FIRST:
        data += file.read(MAX_BYTES)
    if format == "PPM":
        head = _netpbm_head(data, os.fspath(name), most)
        return head.width, head.height
    with _opened(data, os.fspath(name), most, None) as (image, turn):
        width, height = image.size
    return (height, width) if turn >= _QUARTER else (width, height)


def decode_image(
    data: bytes, name: str | os.PathLike[str], *, most: int = MAX_PIXELS, budget: ImageBudget | None = None
) -> NDArray[np.uint8]:
    """Decodes the bytes of an image file; as `read_image`, `name` is for the messages.

    It takes about 8 bytes of memory for each pixel, 10 to 13 for a progressive JPEG, and 17 for a WebP.

    Args:
        data: The file.
        name: Of the file.
        most: The largest number of pixels that is allowed.
        budget: What several images may take together, or None.

    Raises:
        ImageError: As for `read_image`; `BudgetError`, where the budget is used up.
    """
    name = os.fspath(name)
    if sniff(data[:HEAD]) == "PPM":
        head = _netpbm_head(data, name, most)
        if budget is not None:
            budget.take("pixels", head.width * head.height)
        try:
            return netpbm_pixels(data, head)
        except ValueError as error:
            raise ImageError(f"{name}: the image is damaged: {error}") from error
    with _opened(data, name, most, budget) as (image, turn):
        return _to_rgb(image, turn)


@contextlib.contextmanager
def _opened(data: bytes, name: str, most: int, budget: ImageBudget | None) -> Iterator[tuple[Image.Image, int]]:
    """An image whose pixels are not decoded yet, and its orientation; what Pillow raises becomes an `ImageError`."""
    head = data[:HEAD]
    format = sniff(head)
    try:
        if format == "WebP" and math.prod(webp_size(head) or (0,)) > most:
            raise ImageError(f"{name}: expected at most {most} pixels, got more")
        bare = bare_image(data, format, len(data) if budget is None else budget.parts)
        if budget is not None:
            budget.take("parts", bare.parts)
        if math.prod(bare.size) > most:  # before Pillow, which would warn of it on standard error
            _refuse_size(*bare.size, name, most)
        heic = ("HEIF",) if format == "HEIC" and readable(format) else ()
        with Image.open(io.BytesIO(bare.data), formats=(*_FORMATS, *heic)) as image:
            _refuse(image, bare, name, most)
            if budget is not None:
                budget.take("pixels", image.width * image.height * max(1, -(-bare.scans // _SCANS)))
                if image.info.get("compression") in _BMP_RUNS:
                    budget.take("parts", max(len(data), image.width * image.height) // 16)
            told = image.info if format in _TELL_THEIR_TURN else {}
            xmp = (told.get("xmp") or b"") if format == "WebP" else b""
            yield image, orientation(told.get("exif") or b"", xmp) if told else bare.turn
    except (ImageError, MemoryError):
        raise
    except TooManyPartsError as error:
        raise ImageError(f"{name}: the {format} image has {error}") from error
    except UnidentifiedImageError as error:
        what = f"{name}: not a {READ_FORMATS} image"
        if format is not None and not readable(format):
            raise ImageError(f"{what} but {format}; {advice(format)}") from error
        if format is not None:
            raise ImageError(f"{name}: the {format} image is damaged") from error
        raise ImageError(f"{what}, but {what_is_this(head).said()}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: expected at most {most} pixels, got more") from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise ImageError(f"{name}: the image is damaged: {error}") from error


def _netpbm_head(data: bytes, name: str, most: int) -> NetpbmHead:
    try:
        head = netpbm_head(data)
    except ValueError as error:
        raise ImageError(f"{name}: the image is damaged: {error}") from error
    _refuse_size(head.width, head.height, name, most)
    if head.largest > 255:
        raise ImageError(f"{name}: expected 8 bits per channel, got values up to {head.largest}; save it with 8 bits")
    return head


def _refuse_size(width: int, height: int, name: str, most: int) -> None:
    if width * height > most:
        raise ImageError(f"{name}: expected at most {most} pixels, got {width}x{height}")
    if width == 0 or height == 0:
        raise ImageError(f"{name}: expected an image with pixels, got {width}x{height}")


def _refuse(image: Image.Image, bare: Bare, name: str, most: int) -> None:
    _refuse_size(*image.size, name, most)
    if bare.deep or image.mode not in _MODES_8_BIT:
        raise ImageError(f"{name}: expected 8 bits per channel, got more (mode {image.mode}); save it with 8 bits")


def _to_rgb(image: Image.Image, turn: int) -> NDArray[np.uint8]:
    """RGB over white, upright, made of strips: beside Pillow's image and the result there is no second whole image."""
    image.load()
    width, height = image.size
    upright = np.empty((width, height, 3) if turn >= _QUARTER else (height, width, 3), np.uint8)
    stored = _as_stored(upright, turn)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        if strip.mode in ("LA", "PA", "RGBA") or "transparency" in strip.info:
            over = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
        stored[top : top + rows] = np.asarray(strip.convert("RGB"))
    return upright


def _as_stored(upright: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """A view of an upright image in which its rows lie as in the file."""
    if turn in (5, 7):
        upright = upright.transpose(1, 0, 2)
    quarters = {3: 2, 6: 1, 7: 2, 8: -1}.get(turn, 0)
    turned = np.rot90(upright, quarters)
    return turned[:, ::-1] if turn == 2 else turned[::-1] if turn == 4 else turned


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
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


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
