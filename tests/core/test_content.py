"""What a file is, from its bytes; and the readers that say it."""

from __future__ import annotations

import functools
import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from fastadv.core.content import describe_file, file_content, refuse_unless_text, what_is_this
from fastadv.core.errors import Error
from fastadv.data import PairBin, Shards, read_image, read_landmarks, read_pairs_csv
from fastadv.data.lfw import read_lfw_pairs
from fastadv.detection import load_detector
from fastadv.models import read_state_dict

TENSORS = {"a": torch.zeros(3)}
HTML = b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


def torch_bytes(value: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(member: str = "a.txt") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(member))
    return stream.getvalue()


def saved_array(write: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    write(stream, np.zeros(3))
    return stream.getvalue()


MODULE = torch_bytes(nn.Linear(2, 2))
KINDS = {
    "empty": (b"", "an empty file; download it again"),
    "zeros": (bytes(5000), "a file of zero bytes"),
    "html": (HTML, "an HTML page, .*; download the file itself"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    "lfs pointer": (LFS, "a Git LFS pointer, .*; run `git lfs pull`"),
    "gzip": (gzip.compress(b"x"), "compressed with gzip; unpack it first"),
    "tar": (tarred(), "a tar archive"),
    "torch tar": (tarred("sys_info"), r"a torch checkpoint of the tar form before torch 0\.1\.10"),
    "zip": (zipped({"w/model.pt": b"x"}), r"a zip archive of 1 file \(first 'w/model.pt'\); unpack it first"),
    "half zip": (torch_bytes(TENSORS)[:-30], "cut short or damaged; download it again"),
    "torch": (torch_bytes(TENSORS), "a torch checkpoint"),
    "legacy torch": (torch_bytes(TENSORS, _use_new_zipfile_serialization=False), "before torch 1.6"),
    "module": (MODULE, r"asks for torch\.nn\.modules\.linear\.Linear"),
    "pickle with code": (pickle.dumps(Path("x")).replace(b"pathlib", b"evilmod"), r"asks for evilmod\.\w+Path"),
    "pickle": (pickle.dumps({"a": np.zeros(3)}, protocol=2), "a pickle of NumPy arrays"),
    "damaged pickle": (b"\x80\x04\xff", "a pickle that is cut short or damaged"),
    "bin": (pickle.dumps(([b"\xff\xd8\xff\xe0"] * 2, [True])), r"InsightFace \.bin"),
    "safetensors": (save(TENSORS), "a safetensors file"),
    "half safetensors": (save(TENSORS)[:-4], "a safetensors file that is cut short; download it again"),
    "damaged safetensors": (save(TENSORS).replace(b'"dtype"', b'"dtype,'), "with a damaged header"),
    "detector": (
        save(TENSORS, {"format": "fastadv.detection", "kind": "detector"}),
        r"fastadv\.detection \(detector\)",
    ),
    "npy": (saved_array(np.save), r"\.npy"),
    "npz": (saved_array(np.savez), r"\.npz"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    "mxnet": ((0x112).to_bytes(8, "little") + bytes(8) + b"\1" + bytes(20), r"an MXNet \.params file"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(20), "an ONNX graph"),
    "tensorflow": (b"\x08\x01\x12\xab\x05" + bytes(20), "a TensorFlow graph"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(20), "a JPEG image"),
    "webp": (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP image"),
    "gif": (b"GIF89a" + bytes(20), "a GIF image; save it as PNG or JPEG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, .*; save it as PNG or JPEG"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
    "json": (b'{"a": 1}', "a JSON text"),
    "csv": (b"first,second,same\na/1,a/2,1\n", "a CSV text"),
    "landmarks": (b"a/a_1 1 2 3 4 5 6 7 8 9 10\n", "a list of landmarks"),
    "pairs": (b"10\t300\nA 1 2\n", "a list of pairs in LFW's form"),
    "text": (b"hello there\n", "a text .first line 'hello there'"),
    "utf-16": ("a".encode("utf-16"), "text in UTF-16"),
    "short": (b"\xfa\xfb\xfc", "a file of 3 bytes, cut short"),
    "unknown": (bytes(range(200, 256)), "bytes of no known kind"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, kind: str) -> None:
    data, words = KINDS[kind]
    (tmp_path / "x").write_bytes(data)
    found = file_content(tmp_path / "x")
    assert found.kind == kind
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found.said())
    assert "\n" not in found.said(weights=True)
    if kind not in ("torch", "half zip", "zip", "npz", "module"):  # of a zip archive the names are needed too
        assert what_is_this(data) == found


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*quant")
def test_torchscript_and_quantised(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2).eval(), torch.zeros(1, 2)), file)
    assert describe_file(file, weights=True).startswith("a TorchScript archive; load it with torch.jit.load")
    torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, file)
    assert describe_file(file, weights=True).startswith("a checkpoint of quantised tensors; ")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert file_content(tmp_path).kind == file_content(tmp_path / "no").kind == "unreadable"


@pytest.mark.parametrize(
    "text",
    [
        "P1 1 2 3 4 5 6 7 8 9 10",
        "BMW 1 2 3 4 5 6 7 8 9 10",
        "BZhang 1 2 3 4 5 6 7 8 9 10",
        "cab\nabc\nace\n",
        "\n#\nConst",
    ],
)
def test_lists_that_begin_like_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    refuse_unless_text(tmp_path / "x", Error, "a list")


READERS: dict[str, Callable[[Path], object]] = {
    "weights": read_state_dict,
    "detector": load_detector,
    "bin": PairBin,
    "tar": lambda file: Shards(file),
    "csv": read_pairs_csv,
    "pairs": read_lfw_pairs,
    "landmarks": read_landmarks,
    "image": read_image,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("kind", "words"), [("html", "an HTML page, .*; download"), ("lfs pointer", "Git LFS pointer, .*git lfs pull")]
)
def test_every_reader_says_what_it_got(tmp_path: Path, reader: str, kind: str, words: str) -> None:
    file = tmp_path / ("x.tar" if reader == "tar" else "x.bin")
    file.write_bytes(KINDS[kind][0] + b" " * 600)
    with pytest.raises(Error, match=words) as error:
        READERS[reader](file)
    assert "\n" not in str(error.value)


def test_the_words_of_torch_do_not_come_through(tmp_path: Path) -> None:
    import traceback

    class Opens:
        def __reduce__(self) -> tuple:
            return open, ("x",)

    for number, content in enumerate(({"a": functools.partial(print)}, {"a": torch.zeros(1), "b": Opens()})):
        file = tmp_path / f"{number}.pt"
        torch.save(content, file)
        with pytest.raises(Error) as error:
            read_state_dict(file)
        assert "weights_only" not in "".join(traceback.format_exception(error.value)).replace("weights_only=True", "")
