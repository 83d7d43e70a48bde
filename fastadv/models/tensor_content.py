"""What a weights file holds, read by what it is and not by its suffix, without running code."""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastadv.core.content import file_content
from fastadv.core.content_kind import AGAIN, Content
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.pickle_values import PickleRefusedError
from fastadv.models.memory import is_out_of_memory
from fastadv.models.pickled import check_torch, read_objects

_EXPECTED = "a safetensors file or a torch checkpoint"
_MOST_BYTES = 1 << 32  # of the arrays of an .npz, which may be compressed
_TORCH = ("torch", "legacy torch")
_OBJECTS = ("module", "pickle", "pickle with code")
# plain values that trainings keep beside the weights: placeholders stand for them, what they name is not imported
_BESIDE = re.compile(
    r"numpy\.(?:_?core\.(?:multiarray|numeric)\.\w+|dtype|ndarray|dtypes\.\w+|\w*int\d*|\w*float\d*|bool_?)"
    r"|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|datetime\.\w+"
)
_LOCK = threading.Lock()


class CheckpointError(Error, ValueError):
    """A weights file is missing, broken, unsafe, or does not fit the model.

    Attributes:
        what: what the file is, where it is not what was expected.
    """

    def __init__(self, message: str, *, what: str = "") -> None:
        super().__init__(message)
        self.what = what


class _Beside:
    """Stands for a value that is no weight; takes and keeps nothing."""

    def __new__(cls, *arguments: object) -> _Beside:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_content(path: str | os.PathLike[str]) -> Any:
    """The content of a weights file: tensors by name, or dicts around them as trainings save them.

    Pickled networks and pickled arrays are read too, without running them (`fastadv.models.pickled`), and the arrays of
    an `.npz`.

    Args:
        path: a file of any suffix; what it is, its bytes tell.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds code; the message says what the
            file is and what to do.
    """
    file = Path(path)
    if not os.path.isfile(file):
        what = "a directory" if os.path.isdir(file) else "which does not exist"
        raise CheckpointError(f"weights: expected {_EXPECTED}, got {file}, {what}")
    found = file_content(file)
    if found.kind == "safetensors":
        try:
            return load_file(file)
        except Exception as error:  # a damaged header makes safetensors and torch raise anything
            raise _damaged(file, found, str(error)) from None
    if found.kind in _TORCH:
        return load_torch(file, found)
    if found.kind in _OBJECTS:
        return _objects(file, found)
    if found.kind == "npz":
        return _arrays(file, found)
    raise CheckpointError(f"weights: expected {_EXPECTED}, got {file}, {found.said(weights=True)}", what=found.what)


def _objects(file: Path, found: Content) -> Any:
    try:
        return read_objects(file)
    except PickleRefusedError as error:
        again = f"; {AGAIN}" if str(error).startswith("cut short") else ""
        what = f"{found.what}; {error}{again}"
        raise CheckpointError(f"weights: expected {_EXPECTED}, got {file}, {what}", what=what) from None
    except Exception as error:  # a damaged archive or pickle raises anything from BadZipFile to struct.error
        raise _damaged(file, found, str(error)) from None


def _arrays(file: Path, found: Content) -> dict[str, Tensor]:
    """The arrays of NumPy's archive as tensors; arrays of objects would be pickles, and are refused."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            if sum(part.file_size for part in archive.zip.infolist()) > _MOST_BYTES:
                raise ArgumentError(f"arrays: expected at most {_MOST_BYTES} bytes in all, got more")
            arrays = {name: archive[name] for name in archive.files}
        native = {name: array.astype(array.dtype.newbyteorder("="), order="C") for name, array in arrays.items()}
        return {name: torch.from_numpy(array) for name, array in native.items() if array.dtype.kind in "fiub"}
    except Exception as error:  # a damaged archive raises anything from BadZipFile to struct.error
        raise _damaged(file, found, str(error)) from None


def load_torch(file: Path, found: Content | None = None) -> Any:
    """The content of a file of ``torch.save`` that holds tensors and plain values.

    Plain values that torch refuses (NumPy's numbers, the options of a training, paths, dates) become placeholders.

    Args:
        file: the file.
        found: what it is, where that is known already.

    Raises:
        CheckpointError: it is no such file, is damaged, or holds code, which is never run.
    """
    found = found or file_content(file)
    if found.kind not in _TORCH:
        raise CheckpointError(f"weights: expected {_EXPECTED}, got {file}, {found.said(weights=True)}", what=found.what)
    try:
        check_torch(file)
    except PickleRefusedError as error:
        raise _damaged(file, found, str(error)) from None
    except Exception:  # a damaged archive or pickle raises anything from BadZipFile to struct.error
        raise _damaged(file, found, "") from None
    if found.kind == "torch" and _is_damaged(file):
        raise _damaged(file, found, "its checksums do not fit")
    beside: list[Any] = [(_Beside, name) for name in found.names if _BESIDE.fullmatch(name)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not beside:
                return torch.load(file, map_location="cpu", weights_only=True)
            with _LOCK, torch.serialization.safe_globals(beside):
                return torch.load(file, map_location="cpu", weights_only=True)
    # Anything: of 12,000 damaged files some raised AssertionError, TypeError and struct.error. torch's own words are
    # left out, also as a cause: they advise to run the file's code.
    except Exception:
        raise _damaged(file, found, "") from None


def _is_damaged(file: Path) -> bool:
    """Whether the checksums of some parts do not fit. torch can be told to write none: then they fit nowhere."""
    fitting, wrong = 0, 0
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                try:
                    with archive.open(info) as part:
                        while part.read(1 << 20):
                            pass
                    fitting += info.file_size > 0
                except zipfile.BadZipFile:
                    wrong += 1
    except MemoryError:
        raise
    except Exception:  # a damaged archive raises anything from BadZipFile to RuntimeError and zlib.error
        return True
    return bool(wrong and fitting)


def _damaged(file: Path, found: Content, detail: str) -> CheckpointError:
    if is_out_of_memory(sys.exc_info()[1]):
        raise  # what was about to be said of the file would be wrong
    more = f" ({detail.splitlines()[0][:200]})" if detail else ""
    what = f"{found.what} that is cut short or damaged{more}"
    return CheckpointError(f"weights: expected {_EXPECTED}, got {file}, {what}; download or save it again", what=what)
