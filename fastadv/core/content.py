"""What a file is, from its first bytes: for the message of a reader that expected something else.

Nothing of the file is run or unpacked; of a zip archive the list of names and, for a torch checkpoint, the opcodes of
its pickle are looked at.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadv.core.pickle_names import pickle_names, pickles_names

HEAD = 256 * 1024
_MOST_PICKLE = 1 << 20
_SHOWN = 40
_LEAST = 16  # bytes of a file that can be of any use
_AGAIN = "download it again"
_ITSELF = "download the file itself"
_UNPACK = "unpack it first"
_AS_STATE = "save the module's state_dict() in the framework that wrote it, best as .safetensors"
_STATE_OF_SCRIPT = "load it with torch.jit.load and save its state_dict(), best as .safetensors"
_NOT_RUN = "it holds code, which is never run; save the module's state_dict() alone, best as .safetensors"
_CONVERT = "save it as PNG or JPEG"

_TEXTS = frozenset({"text", "utf-16", "csv", "landmarks", "pairs"})
_LEFT = frozenset({"empty", "short", "unknown", "unreadable"})  # what a reader of text says itself


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file is.

    Attributes:
        kind: one word that programs can compare: ``"html"``, ``"torch zip"``, ``"text"``, ``"unknown"``, ...
        what: the same for a message: "an HTML page, as a link that needs a login gives one".
        mend: what to do about it whatever was expected; "" where that is not known.
        weights: what to do about it where network weights were expected.
        names: what its pickle would import, where it is one or holds one.
    """

    kind: str
    what: str
    mend: str = ""
    weights: str = ""
    names: tuple[str, ...] = ()

    def said(self, *, weights: bool = False) -> str:
        """What it is and what to do, for the end of an error message."""
        advice = self.mend or (self.weights if weights else "")
        return f"{self.what}; {advice}" if advice else self.what


def describe_file(path: str | os.PathLike[str], *, weights: bool = False) -> str:
    """The end of the message "expected ..., got ...": what a file is and what to do.

    Args:
        path: the file; one that cannot be read is described as such.
        weights: whether network weights were expected, and advice on them helps.
    """
    return file_content(path).said(weights=weights)


def file_content(path: str | os.PathLike[str]) -> Content:
    """``what_is_this`` for a file on the disk; never raises."""
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            head = opened.read(HEAD)
            if not head.startswith(b"PK"):
                longer = head + opened.read(_MOST_PICKLE) if _is_pickle(head) else head
                return what_is_this(longer, size=size)
    except (OSError, ValueError) as error:
        return Content(kind="unreadable", what=f"a file that cannot be read ({getattr(error, 'strerror', error)})")
    members, pickle = _zip_parts(file)
    return what_is_this(head, size=size, members=members, pickle=pickle)


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
    for test in (_nothing, _page, _image, _packed, _tensors, _pickled, _other_framework):
        found = test(head, size)
        if found is not None:
            return found
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zipped(members, pickle)
    found = _text(head)
    if found is None and size < _LEAST:
        return Content(kind="short", what=f"a file of {size} bytes, cut short", mend=_AGAIN)
    return found or Content(kind="unknown", what=f"bytes of no known kind (they begin with {head[:8].hex(' ')})")


def refuse_unless_text(
    path: str | os.PathLike[str], error: Callable[[str], Exception], expected: str, *, kinds: frozenset[str] = _TEXTS
) -> None:
    """Raise where a file that should be a list of lines is something else; a file that is not there passes.

    Args:
        path: the file.
        error: makes the exception of the message.
        expected: what was expected, for the message: "a CSV file of pairs".
        kinds: the kinds that pass.
    """
    if Path(path).is_file():
        found = file_content(path)
        if found.kind not in kinds | _LEFT:
            raise error(f"{path}: expected {expected}, got {found.said()}")


def _nothing(head: bytes, size: int) -> Content | None:
    if not head:
        return Content(kind="empty", what="an empty file", mend=_AGAIN)
    if not any(head):
        return Content(kind="zeros", what="a file of zero bytes (a download that broke off?)", mend=_AGAIN)
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
            return Content(kind=kind, what=f"a file compressed with {kind}", mend=_UNPACK)
    if len(head) >= 512 and (head[257:262] == b"ustar" or _tar_sum(head[:512])):
        return Content(kind="tar", what="a tar archive", weights=_UNPACK)
    return None


def _tar_sum(header: bytes) -> bool:
    digits = header[148:156].strip(b" \0")
    made = sum(header[:148]) + sum(header[156:]) + 8 * 32
    return re.fullmatch(rb"[0-7]{1,7}", digits) is not None and int(digits, 8) == made


_HALF_SAFETENSORS = Content(kind="half safetensors", what="a safetensors file that is cut short", mend=_AGAIN)


def _tensors(head: bytes, size: int) -> Content | None:
    """What holds tensors in a form of its own."""
    if head.startswith(b"\x93NUMPY"):
        return Content(kind="npy", what="a NumPy array (.npy)", weights="expected tensors by name, as .safetensors")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Content(kind="hdf5", what="an HDF5 file (of Keras?)", weights=f"HDF5 is not read; {_AS_STATE}")
    if int.from_bytes(head[:8], "little") == 0x112 and size >= 24:
        return Content(
            kind="mxnet", what="an MXNet .params file", weights="MXNet files are not read; convert it to .safetensors"
        )
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= 100_000_000:
        if 8 + length > size:
            return _HALF_SAFETENSORS
        return _safetensors(head[8 : 8 + length], length, size)
    return None


def _safetensors(header: bytes, length: int, size: int) -> Content:
    """By its header, where that is whole; a longer one is left to the reader."""
    if len(header) == length:
        try:
            entries = json.loads(header)
            about = entries.pop("__metadata__", {})
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
            if about.get("format") == "fastadv.detection":
                kind = str(about.get("kind"))[:_SHOWN]
                return Content(kind="detector", what=f"a file of fastadv.detection ({kind}), no network")
        except Exception:  # not JSON, nested too deep, or of other types
            return Content(kind="damaged safetensors", what="a safetensors file with a damaged header", mend=_AGAIN)
        if 8 + length + end > size:
            return _HALF_SAFETENSORS
    return Content(kind="safetensors", what="a safetensors file")


_PICKLES = re.compile(rb"\x80[\x00-\x05]|\(?(?:\(?[ld]p\d+\n|c[\w.]+\n[\w.]+\n|[\]}][qr])")
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# what a pickle may name without holding code: tensors, plain values, and the options and numbers of a training
_PLAIN = re.compile(
    r"collections\.(?:OrderedDict|Counter)|_codecs\.encode|(?:__builtin__|builtins)\.(?:bytes|bytearray|set|complex)"
    r"|torch\.(?!load$|save$|compile$)\w+|torch\._(?:utils|tensor)\._rebuild\w+|torch\.storage\.\w+Storage"
    r"|torch\.nn\.parameter\.\w+|torch\.serialization\._get_layout"
    r"|numpy\..*|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|datetime\.\w+"
)


def _is_pickle(head: bytes) -> bool:
    return _PICKLES.match(head) is not None


def _pickled(head: bytes, size: int) -> Content | None:
    if not _is_pickle(head):
        return None
    if _LEGACY_TORCH in head[:16]:
        # its magic number, its version and what wrote it are pickles of their own, before the content
        return _checkpoint(
            pickles_names(head[15:], 3), "legacy torch", "a torch checkpoint of the form before torch 1.6"
        )
    names = pickle_names(head, sure=head.startswith(b"\x80"))
    if names is None:
        if not head.startswith(b"\x80"):
            return None
        return Content(kind="damaged pickle", what="a pickle that is cut short or damaged", mend=_AGAIN)
    code = _code(names)
    if code:
        return Content(kind="pickle with code", what=f"a pickle that asks for {code}", weights=_NOT_RUN, names=names)
    if any(magic in head[:512] for magic in (b"\xff\xd8\xff", b"\x89PNG\r")) and b"]" in head[:16]:
        return Content(kind="bin", what="a pickle of encoded images (an InsightFace .bin of pairs?)")
    what = "a pickle of NumPy arrays" if any(n.startswith("numpy.") for n in names) else "a pickle of plain values"
    return Content(
        kind="pickle",
        what=f"{what}, no torch checkpoint",
        weights="save its arrays as tensors by name with torch.save, best as .safetensors",
    )


def _code(names: Sequence[str]) -> str:
    return next((name[:_SHOWN] for name in names if _PLAIN.fullmatch(name) is None), "")


def _checkpoint(names: tuple[str, ...], kind: str, what: str) -> Content:
    """What a torch file is, by what its pickle would import."""
    code = _code(names)
    if code:
        return Content(kind="module", what=f"a pickled object that asks for {code}", weights=_NOT_RUN, names=names)
    if any("rebuild_qtensor" in name or re.search(r"\.QU?Int\d", name) for name in names):
        return Content(
            kind="quantised",
            what="a checkpoint of quantised tensors",
            weights="quantised networks are not read; save the float32 network's state_dict()",
            names=names,
        )
    return Content(kind=kind, what=what, names=names)


def _zip_parts(file: Path) -> tuple[list[str] | None, bytes]:
    """The names in an archive and the pickle of a torch checkpoint; None for the names where there is no directory."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            data = next((n for n in names if n == "data.pkl" or n.endswith("/data.pkl")), None)
            if data is None:
                return names, b""
            try:
                with archive.open(data) as opened:
                    return names, opened.read(_MOST_PICKLE)
            except zipfile.BadZipFile:  # a wrong checksum, or none where torch was told to write none
                return names, b""
    except Exception:  # a damaged archive raises anything from BadZipFile to RuntimeError and zlib.error
        return None, b""


def _zipped(members: Sequence[str] | None, pickle: bytes) -> Content:
    if members is None:
        return Content(
            kind="half zip", what="a zip archive or torch checkpoint that is cut short or damaged", mend=_AGAIN
        )
    if not members:
        return Content(kind="zip", what="an empty zip archive")
    below = [name.partition("/")[2] for name in members]
    if "data.pkl" in below or "data.pkl" in members:
        if "constants.pkl" in below or any(name.startswith("code/") for name in below):
            return Content(kind="torchscript", what="a TorchScript archive", weights=_STATE_OF_SCRIPT)
        return _checkpoint(pickle_names(pickle) or (), "torch", "a torch checkpoint")
    if "archive_format" in (*members, *below) or any(
        name.endswith("serialized_exported_program.json") for name in members
    ):
        return Content(kind="exported", what="an archive of torch.export", weights=_AS_STATE)
    if all(name.endswith(".npy") for name in members):
        return Content(
            kind="npz", what="NumPy arrays (.npz)", weights="save its arrays as tensors by name, as .safetensors"
        )
    if "model.weights.h5" in members:
        return Content(kind="keras", what="a Keras archive", weights=f"Keras is not read; {_AS_STATE}")
    if "[Content_Types].xml" in members:
        return Content(kind="office", what="an Office document")
    files = [name for name in members if not name.endswith("/")]
    first = repr((files or list(members))[0][:_SHOWN])
    return Content(
        kind="zip",
        what=f"a zip archive of {len(files)} file{'s' if len(files) != 1 else ''} (first {first})",
        mend=_UNPACK,
    )


def _other_framework(head: bytes, size: int) -> Content | None:
    onnx = Content(kind="onnx", what="an ONNX graph", weights=f"ONNX is not read yet; {_AS_STATE}")
    tensorflow = Content(kind="tensorflow", what="a TensorFlow graph", weights=f"TensorFlow is not read; {_AS_STATE}")
    if _text(head) is not None:
        return None
    if head[4:8] == b"TFL3":
        return Content(kind="tflite", what="a TensorFlow Lite network", weights=f"TensorFlow is not read; {_AS_STATE}")
    if head[:4] == b"\x0a\x23\xd7\xce":
        return Content(kind="rec", what="an MXNet RecordIO file (.rec)", mend="unpack its images into folders first")
    if head[:4] == b"GGUF":
        return Content(kind="gguf", what="a GGUF file", weights=_AS_STATE)
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
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < 5:
            return None
        text = head[: error.start].decode("utf-8-sig")
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        return None
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if text.lstrip()[:1] in ("{", "[") and re.match(r'[\[{]\s*["\[\]{}\d-]', text.lstrip()):
        return Content(kind="json", what="a JSON text", weights=_ITSELF)
    if _LANDMARKS.fullmatch(first):
        return Content(kind="landmarks", what="a list of landmarks")
    shown = f"{first[:_SHOWN]}..." if len(first) > _SHOWN else first
    if first.count(",") >= 2:
        return Content(kind="csv", what=f"a CSV text (first line {shown!r})")
    if re.fullmatch(r"\d+(?:\s+\d+)?", first):
        return Content(kind="pairs", what="a list of pairs in LFW's form (pairs.txt)")
    return Content(kind="text", what=f"a text (first line {shown!r})", weights=_ITSELF)
