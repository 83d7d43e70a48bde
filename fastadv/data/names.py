"""One rule for the names of faces: as files and members of a tar have them, and as lists write them.

A face is named `identity/file`: its folder (or folders) and its file without the image extension, in the Unicode form
NFC. Only the extensions of image formats are cut off, so `Mr.A_0001` and `j.r_1.png` keep their dots. A list may write
a name with or without extension, with a leading `./`, with backslashes, and in another Unicode form.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Container, Sequence

from fastadv.core.errors import Error
from fastadv.core.remote import to_path

#: Extensions of the formats that are read.
READ = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".avif"}
)
#: Extensions of images in other formats: read where the content is of a format that is read, else said to be left out.
OTHER = frozenset(
    {".gif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".ico"}
    | {".psd", ".tga", ".exr", ".hdr", ".pcx", ".xcf", ".svg", ".pfm", ".sgi", ".ras"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
# Folders that archivers and file servers put beside the files of people.
_FOREIGN = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
MAX_PART = 255  # bytes that file systems take for a file or folder
_MAX_FILE = MAX_PART - len(".png")  # a run writes the image again, as PNG
_MAX_NAME = 4096  # letters that are brought into a Unicode form: sorting many marks on a letter takes their square
_UNUSABLE = re.compile(r"[\\\x00-\x1f\x7f]")


def hidden(part: str) -> bool:
    """Whether a file or folder of this name is no part of a data set: `.name`, and what archivers leave behind."""
    return part.startswith(".") or part in _FOREIGN


def extension(name: str) -> str:
    """The extension of an image format, in lower case with its dot; empty where the name has none."""
    ending = os.path.splitext(name)[1].lower()
    return ending if ending in READ or ending in OTHER else ""


def stem(name: str) -> str:
    """A name without the extension of an image format; any other tail stays."""
    ending = extension(name)
    return name[: -len(ending)] if ending else name


def canonical(name: str) -> str:
    """A name in the Unicode form NFC, which is that of all names of a source."""
    return name if name.isascii() or len(name) > _MAX_NAME else unicodedata.normalize("NFC", name)


def written(text: str) -> str:
    """A name as a list writes it, in the form of a source's names; an extension stays."""
    name = canonical(text.strip())
    while name.startswith("./"):
        name = name[2:]
    return name


def find(text: str, known: Container[str]) -> str | None:
    """The known name that a list means: as written; else with "/" for backslashes; else without image extension."""
    name = written(text)
    slashed = name.replace("\\", "/").removeprefix("./")
    for candidate in (text, name, slashed, stem(slashed)):
        if candidate in known:
            return candidate
    return None


def fault(name: str) -> str | None:
    """Why a name cannot be that of a face, or None where it can."""
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return "the file name is not UTF-8, or Python was not started in UTF-8 mode (PYTHONUTF8=1)"
    if any(part in (b"", b".", b"..") for part in parts):
        return "the name has an empty part or leaves its folder"
    if _UNUSABLE.search(name):
        return "the name has a backslash or a control character"
    if len(parts[-1]) > _MAX_FILE or any(len(part) > MAX_PART for part in parts):
        return f"a part of the name is longer than {_MAX_FILE} bytes (a folder: {MAX_PART})"
    return None


def shown(name: str) -> str:
    """A name for a message: in quotes where it has anything unprintable, and not longer than a line."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def several(names: Sequence[str]) -> str:
    """The first few of some names and how many there are, for messages."""
    first = ", ".join(map(shown, names[:5]))
    return first if len(names) <= 5 else f"{first} and {len(names) - 5} more ({len(names)} in all)"


def read_lines(path: str | os.PathLike[str], what: str, refused: type[Error]) -> list[str]:
    """The lines of a list: UTF-8, or UTF-16 that begins with its byte order mark; any line ends.

    Raises:
        Error: Of the class `refused`, where the file cannot be read; `what` says what it would hold.
    """
    return read_text(path, what, refused).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: str | os.PathLike[str], what: str, refused: type[Error]) -> str:
    """The text of a list, without its byte order mark; raises as `read_lines`."""
    path = to_path(path)
    try:
        data = path.read_bytes()
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise refused(f"{path}: the {what} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not {'UTF-16' if wide else 'UTF-8'}"
        raise refused(f"{path}: the {what} cannot be read: {where}; save the list as UTF-8") from error
