"""Write the bill of materials of a wheel, CycloneDX as JSON, beside it: `python .ci/sbom.py --help`.

cyclonedx-py lists the environment that the wheel was installed into: names, versions, licences, and what needs what.
Here the wheel becomes the subject, with the parts that are inside it; each package gets the SHA-256 of the file that
pip installed; what the wheel does not need, such as pip, is left out. The text has no path, and no time but that of
SOURCE_DATE_EPOCH: the same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from email import message_from_bytes
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VERSION = "1.6"


def sha256(data: bytes) -> list[dict[str, str]]:
    """The hashes of a component."""
    return [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}]


def listed(python: Path) -> dict[str, Any]:
    """What cyclonedx-py says of the environment of an interpreter."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--spec-version", VERSION]
    done = subprocess.run([*command, "--of", "JSON", str(python)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"cyclonedx-py: expected a list of {python}, got exit status {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def installed(reports: Iterable[Path]) -> dict[str, tuple[str, list[str]]]:
    """The SHA-256 of each file that pip installed and what it asks for, by name, from pip's reports."""
    rows = [row for report in reports for row in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {
        canonicalize_name(row["metadata"]["name"]): (
            row["download_info"]["archive_info"]["hashes"]["sha256"],
            row["metadata"].get("requires_dist", []),
        )
        for row in rows
    }


def asked(wheel: Path) -> list[str]:
    """What a wheel asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def needs(root: str, requires: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """What needs what, from a package on, by name; what an extra asks for counts where something asks for the extra."""
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(root)]
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras) or frozenset({""})
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        rows = map(Requirement, requires.get(name, ()))
        more = [r for r in rows if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
        found.setdefault(name, set()).update(canonicalize_name(r.name) for r in more)
        todo += more
    return found


def inside(wheel: Path) -> list[dict[str, Any]]:
    """The parts of a wheel that are neither Python nor C++ of ours: NOTICE has their licences."""
    parts = [
        {
            "type": "library",
            "name": "pybind11",
            "version": metadata.version("pybind11"),
            "description": "Headers, compiled into the module.",
            "licenses": [{"license": {"id": "BSD-3-Clause"}}],
        }
    ]
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(archive.namelist())
        if any(b"cudart" in archive.read(name) for name in names if name.endswith(".so")):
            licence = [{"license": {"name": "NVIDIA CUDA Toolkit End User License Agreement"}}]
            parts.append({"type": "library", "name": "CUDA runtime", "licenses": licence})
        for name in names:
            if name.endswith(".safetensors"):
                part = {"type": "machine-learning-model", "name": PurePosixPath(name).stem}
                parts.append({**part, "licenses": [{"license": {"id": "MIT"}}], "hashes": sha256(archive.read(name))})
    return [{"bom-ref": f"inside:{part['name']}", **part} for part in parts]


def bill(
    found: Mapping[str, Any], wheel: Path, files: Mapping[str, tuple[str, list[str]]], root: str = "fastadv"
) -> dict[str, Any]:
    """The bill of materials of a wheel.

    Args:
        found: What cyclonedx-py lists.
        wheel: The file.
        files: SHA-256 of what was installed and what it asks for, by name.
        root: The name of the package in the wheel.
    """
    components = {canonicalize_name(component["name"]): component for component in found["components"]}
    edges = needs(root, {name: rows for name, (_, rows) in files.items()} | {root: asked(wheel)})
    for name in sorted(edges.keys() - {root}):
        if name not in files or name not in components:
            sys.exit(f"{name}: expected a package that pip installed, got none in its reports or in the environment")
        components[name]["hashes"] = [{"alg": "SHA-256", "content": files[name][0]}]
    subject = {
        **components[root],
        "hashes": sha256(wheel.read_bytes()),
        "externalReferences": [{"type": "distribution", "url": wheel.name}],
        "components": inside(wheel),
    }
    refs = {name: component["bom-ref"] for name, component in components.items()}
    return {
        **found,
        "metadata": {**found["metadata"], "component": subject},
        "components": [components[name] for name in sorted(edges.keys() - {root})],
        "dependencies": [
            {"ref": refs[name], "dependsOn": sorted(refs[other] for other in edges[name])} for name in sorted(edges)
        ],
    }


def validate(text: str) -> None:
    """End with a message unless a text is a bill of materials by the schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.from_version(VERSION)).validate_str(text)
    if fault is not None:
        sys.exit(f"bill of materials: expected CycloneDX {VERSION}, got {fault}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="The wheel.")
    parser.add_argument("--python", type=Path, required=True, help="Interpreter of the environment that has it.")
    parser.add_argument(
        "--report", type=Path, action="append", required=True, help="Of `pip install --report`; may be repeated."
    )
    options = parser.parse_args()
    made = bill(listed(options.python), options.wheel, installed(options.report))
    text = json.dumps(made, indent=2, sort_keys=True) + "\n"
    validate(text)
    out = options.wheel.with_suffix(".cdx.json")
    out.write_text(text, encoding="utf-8")
    print(f"{out.name}: {len(made['components'])} packages, {len(made['metadata']['component']['components'])} parts")


if __name__ == "__main__":
    main()
