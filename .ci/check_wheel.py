"""Check that a wheel holds only what it should: `python .ci/check_wheel.py WHEEL`, in a checkout.

The package is what git tracks of it, byte for byte. Beside it are one compiled module, which links the system alone and
names no folder of the machine that built it, and the metadata with the licences.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from pathlib import Path, PurePosixPath

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"fastadv/": "fastadv/", "kernels/": "fastadv/kernels/"}
"""Of the checkout: its place in the wheel."""
SUFFIXES = {".css", ".html", ".py", ".safetensors", ".typed"}
SOURCES = {".cu", ".cuh", ".h"}
"""Compiled into the module, and in no wheel."""
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"}
ENTRY_POINTS = "[console_scripts]\nfastadv = fastadv.cli:main"
SYSTEM = re.compile(r"(lib(c|dl|gcc_s|m|pthread|rt|stdc\+\+)|ld-linux.*)\.so(\.\d+)*")
"""Libraries that each Linux has; anything else would have to be in the wheel, and its licence in NOTICE."""


def tracked(root: Path = ROOT) -> dict[str, bytes]:
    """The files of the package that git tracks, by their names in the wheel."""
    command = ["git", "ls-files", "-z", *FOLDERS]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {}
    for name in filter(None, listed):
        folder, _, rest = name.partition("/")
        if PurePosixPath(name).suffix not in SOURCES:
            found[FOLDERS[f"{folder}/"] + rest] = (root / name).read_bytes()
    return found


def faults(wheel: Path, wanted: Mapping[str, bytes]) -> list[str]:
    """What is wrong with a wheel, one line each.

    Args:
        wheel: The file.
        wanted: The files of the package, by their names in the wheel.
    """
    with zipfile.ZipFile(wheel) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    module = sorted(name for name in held if re.fullmatch(r"fastadv/_C\.[\w.-]+\.so", name))
    expected = {*wanted, *(module[:1] or ["fastadv/_C.*.so"]), *(f"{info}/{name}" for name in METADATA)}
    found = [f"{name}: expected no such file, got one" for name in sorted(held.keys() - expected)]
    found += [f"{name}: expected a file, got none" for name in sorted(expected - held.keys())]
    for name, data in wanted.items():
        if PurePosixPath(name).suffix not in SUFFIXES:
            found.append(f"{name}: expected one of {', '.join(sorted(SUFFIXES))}, got another suffix")
        if held.get(name, data) != data:
            found.append(f"{name}: expected the bytes of the checkout, got others")
    if not found:
        found += [*_metadata(held, info), *(line for name in module for line in _module(name, held[name]))]
    return found


def _metadata(held: Mapping[str, bytes], info: str) -> Iterator[str]:
    """Faults of the record of hashes, the entry points and the licences."""
    rows = {row[0]: row[1] for row in csv.reader(held[f"{info}/RECORD"].decode().splitlines())}
    for name, data in held.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if name != f"{info}/RECORD" and rows.get(name) != f"sha256={digest}":
            yield f"{name}: expected sha256={digest} in RECORD, got {rows.get(name)}"
    entries = held[f"{info}/entry_points.txt"].decode().strip()
    if entries != ENTRY_POINTS:
        yield f"{info}/entry_points.txt: expected {ENTRY_POINTS!r}, got {entries!r}"
    fields = message_from_bytes(held[f"{info}/METADATA"])
    got = (fields.get_all("License-Expression"), sorted(fields.get_all("License-File", [])))
    if got != (["MIT"], ["LICENSE", "NOTICE"]):
        yield f"{info}/METADATA: expected the licence MIT with LICENSE and NOTICE, got {got}"


def _module(name: str, data: bytes) -> Iterator[str]:
    """Faults of the compiled module."""
    for tag in ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic").iter_tags():
        kind = tag.entry.d_tag
        if kind in ("DT_RPATH", "DT_RUNPATH"):
            yield f"{name}: expected no search path, got {tag.rpath if kind == 'DT_RPATH' else tag.runpath}"
        elif kind == "DT_NEEDED" and not SYSTEM.fullmatch(tag.needed):
            yield f"{name}: expected libraries of the system, got {tag.needed}"
    for folder in sorted({str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}):
        if f"{folder}/".encode() in data:
            yield f"{name}: expected no folder of this machine, got {folder}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    wheel, wanted = Path(sys.argv[1]), tracked()
    found = faults(wheel, wanted)
    if found:
        sys.exit("\n".join(found))
    print(f"{wheel.name}: {len(wanted)} files of the package, one compiled module and {len(METADATA)} of metadata")


if __name__ == "__main__":
    main()
