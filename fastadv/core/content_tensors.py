"""What a file that holds tensors or a pickle is: its opcodes and names are read, nothing is run."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fastadv.core.content_kind import AGAIN, AS_STATE, SHOWN, UNPACK, Content
from fastadv.core.pickle_names import pickle_names, pickles_names
from fastadv.core.places import open_binary

MOST_PICKLE = 1 << 20
_STATE_OF_SCRIPT = "load it with torch.jit.load and save its state_dict(), best as .safetensors"
_NOT_RUN = "it holds code, which is never run; save the module's state_dict() alone, best as .safetensors"


_HALF_SAFETENSORS = Content(kind="half safetensors", what="a safetensors file that is cut short", mend=AGAIN)


def tensors(head: bytes, size: int) -> Content | None:
    """What holds tensors in a form of its own."""
    if head.startswith(b"\x93NUMPY"):
        return Content(kind="npy", what="a NumPy array (.npy)", weights="expected tensors by name, as .safetensors")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Content(kind="hdf5", what="an HDF5 file (of Keras?)", weights=f"HDF5 is not read; {AS_STATE}")
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
                kind = str(about.get("kind"))[:SHOWN]
                return Content(kind="detector", what=f"a file of fastadv.detection ({kind}), no network")
        except Exception:  # not JSON, nested too deep, or of other types
            return Content(kind="damaged safetensors", what="a safetensors file with a damaged header", mend=AGAIN)
        if 8 + length + end > size:
            return _HALF_SAFETENSORS
    return Content(kind="safetensors", what="a safetensors file")


_PICKLES = re.compile(rb"\x80[\x00-\x05]|\(?(?:\(?[ld]p\d+\n|c[\w.]+\n[\w.]+\n|[\]}][qr])")
LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# what a pickle may name without holding code: tensors, plain values, and the options and numbers of a training
_PLAIN = re.compile(
    r"collections\.(?:OrderedDict|Counter)|_codecs\.encode|(?:__builtin__|builtins)\.(?:bytes|bytearray|set|complex)"
    r"|torch\.(?!load$|save$|compile$)\w+|torch\._(?:utils|tensor)\._rebuild\w+|torch\.storage\.\w+Storage"
    r"|torch\.nn\.parameter\.\w+|torch\.serialization\._get_layout"
    r"|numpy\..*|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|datetime\.\w+"
)


def is_pickle(head: bytes) -> bool:
    return _PICKLES.match(head) is not None


def pickled(head: bytes, size: int) -> Content | None:
    if not is_pickle(head):
        return None
    if LEGACY_TORCH in head[:16]:
        # its magic number, its version and what wrote it are pickles of their own, before the content
        return _checkpoint(
            pickles_names(head[15:], 3), "legacy torch", "a torch checkpoint of the form before torch 1.6"
        )
    names = pickle_names(head, sure=head.startswith(b"\x80"))
    if names is None:
        if not head.startswith(b"\x80"):
            return None
        return Content(kind="damaged pickle", what="a pickle that is cut short or damaged", mend=AGAIN)
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
    return next((name[:SHOWN] for name in names if _PLAIN.fullmatch(name) is None), "")


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


def zip_parts(file: Path) -> tuple[list[str] | None, bytes]:
    """The names in an archive and the pickle of a torch checkpoint; None for the names where there is no directory."""
    try:
        with open_binary(file) as bare, zipfile.ZipFile(bare) as archive:
            names = archive.namelist()
            data = next((n for n in names if n == "data.pkl" or n.endswith("/data.pkl")), None)
            if data is None:
                return names, b""
            try:
                with archive.open(data) as opened:
                    return names, opened.read(MOST_PICKLE)
            except zipfile.BadZipFile:  # a wrong checksum, or none where torch was told to write none
                return names, b""
    except MemoryError:
        raise
    except Exception:  # a damaged archive raises anything from BadZipFile to RuntimeError and zlib.error
        return None, b""


def zipped(members: Sequence[str] | None, pickle: bytes) -> Content:
    if members is None:
        return Content(
            kind="half zip", what="a zip archive or torch checkpoint that is cut short or damaged", mend=AGAIN
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
        return Content(kind="exported", what="an archive of torch.export", weights=AS_STATE)
    if all(name.endswith(".npy") for name in members):
        return Content(
            kind="npz", what="NumPy arrays (.npz)", weights="save its arrays as tensors by name, as .safetensors"
        )
    if "model.weights.h5" in members:
        return Content(kind="keras", what="a Keras archive", weights=f"Keras is not read; {AS_STATE}")
    if "[Content_Types].xml" in members:
        return Content(kind="office", what="an Office document")
    files = [name for name in members if not name.endswith("/")]
    first = repr((files or list(members))[0][:SHOWN])
    return Content(
        kind="zip",
        what=f"a zip archive of {len(files)} file{'s' if len(files) != 1 else ''} (first {first})",
        mend=UNPACK,
    )
