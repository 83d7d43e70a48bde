"""What a file is, from its first bytes: for the message of a reader that expected something else.

Nothing of the file is run or unpacked; of a zip archive the list of names and, for a torch checkpoint, the opcodes of
its pickle are looked at.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fastadv.core.content_kind import AGAIN, AS_STATE, SHOWN, UNPACK, Content
from fastadv.core.content_tensors import MOST_PICKLE, is_pickle, pickled, tensors, zip_parts, zipped
from fastadv.core.places import is_file, length, open_binary
from fastadv.core.remote import to_path

HEAD = 256 * 1024
_ITSELF = "download the file itself"
_WHOLE = "it is a whole network: give it as --model FILE.onnx, or to fastadv.load_onnx"
_CONVERT = "save it as PNG or JPEG"
_TORCH_TAR = (b"sys_info", b"pickle", b"storages", b"tensors")  # members of one, the first of which begins the file
_SAVE_AGAIN = (
    "it holds code, which is never run; if you trust it, load it with torch.load(file, weights_only=False) and save "
    "its state_dict(), best as .safetensors"
)
_LEAST = 16  # bytes of a file that can be of any use

_TEXTS = frozenset({"text", "utf-16", "csv", "landmarks", "pairs"})
_LEFT = frozenset({"empty", "short", "unknown", "unreadable"})  # what a reader of text says itself


def describe_file(path: str | os.PathLike[str], *, weights: bool = False) -> str:
    """The end of the message "expected ..., got ...": what a file is and what to do.

    Args:
        path: the file; one that cannot be read is described as such.
        weights: whether network weights were expected, and advice on them helps.
    """
    return file_content(path).said(weights=weights)


def file_content(path: str | os.PathLike[str]) -> Content:
    """``what_is_this`` for a file on the disk; never raises."""
    file = to_path(path)
    try:
        with open_binary(file) as opened:
            size = length(opened)
            head = opened.read(HEAD)
            if not head.startswith(b"PK"):
                longer = head + opened.read(MOST_PICKLE) if is_pickle(head) else head
                return what_is_this(longer, size=size)
    except (OSError, ValueError) as error:
        return Content(kind="unreadable", what=f"a file that cannot be read ({getattr(error, 'strerror', error)})")
    members, pickle = zip_parts(file)
    return what_is_this(head, size=size, members=members, pickle=pickle)


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a name is one of an ONNX file, by its suffix, or else by what the file begins with."""
    return Path(path).suffix.lower() == ".onnx" or (is_file(path) and file_content(path).kind == "onnx")


def what_is_this(
    head: bytes, *, size: int | None = None, members: Sequence[str] | None = None, pickle: bytes = b""
) -> Content:
    """What a file is.

    Args:
        head: its first bytes (``HEAD`` of them are enough), or all.
        size: its length in bytes, where that is known: tells a whole file from the beginning of one.
        members: the names in it, where it is a zip archive whose directory could be read.
        pickle: the pickle in it, where it is a torch checkpoint.
    """
    size = len(head) if size is None else size
    for test in (_nothing, _page, _image, _packed, tensors, pickled, _other_framework):
        found = test(head, size)
        if found is not None:
            return found
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return zipped(members, pickle)
    found = _text(head)
    if found is None and size < _LEAST:
        return Content(kind="short", what=f"a file of {size} bytes, cut short", mend=AGAIN)
    return found or Content(kind="unknown", what=f"bytes of no known kind (they begin with {head[:8].hex(' ')})")


def refuse_unless_text(path: str | os.PathLike[str], error: Callable[[str], Exception], expected: str) -> None:
    """Raise where a file that should be a list of lines is something else; a file that is not there passes.

    Args:
        path: the file.
        error: makes the exception of the message.
        expected: what was expected, for the message: "a CSV file of pairs".
    """
    path = to_path(path)
    if is_file(path):
        found = file_content(path)
        if found.kind not in _TEXTS | _LEFT:
            raise error(f"{path}: expected {expected}, got {found.said()}")


def _nothing(head: bytes, size: int) -> Content | None:
    if not head:
        return Content(kind="empty", what="an empty file", mend=AGAIN)
    if not any(head):
        return Content(kind="zeros", what="a file of zero bytes (a download that broke off?)", mend=AGAIN)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return Content(
            kind="lfs pointer",
            what="a Git LFS pointer, not the file itself",
            mend="run `git lfs pull` in its repository",
        )
    if head.startswith(b"/annex/objects/"):
        return Content(
            kind="annex pointer", what="a git-annex pointer, not the file itself", mend="run `git annex get`"
        )
    return None


def _page(head: bytes, size: int) -> Content | None:
    start = head[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<script")) or (
        start.startswith(b"<") and b"<html" in start
    ):
        return Content(
            kind="html",
            what="an HTML page, as a download link that needs a login or a confirmation gives one",
            mend="download the file itself",
        )
    if start.startswith(b"<?xml") or start.startswith(b"<error"):
        return Content(kind="xml", what="an XML document (a server's error message?)", mend="download the file itself")
    return None


def _image(head: bytes, size: int) -> Content | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Content(kind="png", what="a PNG image")
    if head.startswith(b"\xff\xd8\xff"):
        return Content(kind="jpeg", what="a JPEG image")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Content(kind="webp", what="a WebP image")
    if head[:2] == b"BM" and len(head) >= 14 and head[6:10] == bytes(4):
        return Content(kind="bmp", what="a BMP image")
    if re.match(rb"P[1-7]\s(?:#[^\n]*\n|\s)*\d+\s+\d+\s", head) and not _LANDMARKS.match(
        head[:1024].decode("latin-1").partition("\n")[0]
    ):
        return Content(kind="ppm", what="a PPM image")
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return Content(kind="gif", what="a GIF image", mend=_CONVERT)
    if head[:4] in (b"II*\0", b"MM\0*"):
        return Content(kind="tiff", what="a TIFF image", mend=_CONVERT)
    if head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return Content(kind="jxl", what="a JPEG XL image", mend=_CONVERT)
    if head[4:8] == b"ftyp" and head[:1] == b"\0":
        brands = head[8:40]
        if b"avif" in brands or b"avis" in brands:
            return Content(kind="avif", what="an AVIF image", mend=_CONVERT)
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")):
            return Content(kind="heic", what="a HEIC image, as phones take them", mend=_CONVERT)
        return Content(kind="video", what="a video (MP4 or QuickTime)", mend="extract its frames as PNG or JPEG first")
    if head.startswith(b"%PDF-"):
        return Content(kind="pdf", what="a PDF document")
    return None


def _packed(head: bytes, size: int) -> Content | None:
    for magic, kind in (
        (b"\x1f\x8b", "gzip"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07", "RAR"),
    ):
        if head.startswith(magic):
            return Content(kind=kind, what=f"a file compressed with {kind}", mend=UNPACK)
    if len(head) >= 512 and (head[257:262] == b"ustar" or _tar_sum(head[:512])):
        if head[:100].rstrip(b"\0") in _TORCH_TAR:
            what = "a torch checkpoint of the tar form before torch 0.1.10"
            return Content(kind="torch tar", what=what, weights=_SAVE_AGAIN)
        return Content(kind="tar", what="a tar archive", weights=UNPACK)
    return None


def _tar_sum(header: bytes) -> bool:
    digits = header[148:156].strip(b" \0")
    made = sum(header[:148]) + sum(header[156:]) + 8 * 32
    return re.fullmatch(rb"[0-7]{1,7}", digits) is not None and int(digits, 8) == made


def _other_framework(head: bytes, size: int) -> Content | None:
    onnx = Content(kind="onnx", what="an ONNX graph", weights=_WHOLE)
    tensorflow = Content(kind="tensorflow", what="a TensorFlow graph", weights=f"TensorFlow is not read; {AS_STATE}")
    if _text(head) is not None:
        return None
    if head[4:8] == b"TFL3":
        return Content(kind="tflite", what="a TensorFlow Lite network", weights=f"TensorFlow is not read; {AS_STATE}")
    if head[:4] == b"\x0a\x23\xd7\xce":
        return Content(kind="rec", what="an MXNet RecordIO file (.rec)", mend="unpack its images into folders first")
    if head[:4] == b"GGUF":
        return Content(kind="gguf", what="a GGUF file", weights=AS_STATE)
    if len(head) > 3 and head[0] == 0x08:  # field 1, a number: the version of ONNX's or SavedModel's format
        if head[1] in (0, 1) and head[2] == 0x12:
            return tensorflow
        if 2 <= head[1] <= 30 and head[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42):
            return onnx
    if head[:1] == b"\x0a" and any(word in head[:256] for word in (b"Placeholder", b"Const", b"VarHandleOp")):
        return tensorflow
    return None


_LANDMARKS = re.compile(r"\S+(?:[ \t]+[-+.\deE]+){10,11}\s*")


def _text(head: bytes) -> Content | None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Content(kind="utf-16", what="text in UTF-16", mend="save it as UTF-8")
    head = head.removeprefix(codecs.BOM_UTF8)
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < 5:
            return None
        text = head[: error.start].decode()
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        return None
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if text.lstrip()[:1] in ("{", "[") and re.match(r'[\[{]\s*["\[\]{}\d-]', text.lstrip()):
        return Content(kind="json", what="a JSON text", weights=_ITSELF)
    if _LANDMARKS.fullmatch(first):
        return Content(kind="landmarks", what="a list of landmarks")
    shown = f"{first[:SHOWN]}..." if len(first) > SHOWN else first
    if first.count(",") >= 2:
        return Content(kind="csv", what=f"a CSV text (first line {shown!r})")
    if re.fullmatch(r"\d+(?:\s+\d+)?", first):
        return Content(kind="pairs", what="a list of pairs in LFW's form (pairs.txt)")
    return Content(kind="text", what=f"a text (first line {shown!r})", weights=_ITSELF)
