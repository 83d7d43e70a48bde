"""What the project says of itself is true in all places."""

import re
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

from fastadv import __version__
from fastadv.core.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOL = PYPROJECT["project"], PYPROJECT["tool"]
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
FOR_DEVELOPERS = {"test", "fuzz", "lint", "docs"}


def test_the_extras_are_those_that_doctor_names():
    optional = PROJECT["optional-dependencies"]
    assert set(optional) == {*EXTRAS, "all", *FOR_DEVELOPERS}
    for extra, packages in EXTRAS.items():
        assert {Requirement(line).name for line in optional[extra]} == {p.distribution for p in packages}
    (everything,) = map(Requirement, optional["all"])
    assert everything.extras == set(EXTRAS) - {"faiss-gpu", "cupy-cuda12", "cupy-cuda13"}


def test_the_page_on_installing_has_a_row_for_each_extra():
    rows = re.findall(r"(?m)^\| `([a-z0-9-]+)` \|", INSTALL.partition("## Optional packages")[2].partition("\n## ")[0])
    assert sorted(rows) == sorted(PROJECT["optional-dependencies"])


def test_the_version_is_one():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^version: (.*)$", citation) == [__version__]


def test_the_oldest_python_is_one():
    least = PROJECT["requires-python"].removeprefix(">=")
    assert f"find_package(Python {least} REQUIRED" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"Python ≥ {least}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python :: {least}" in " ".join(PROJECT["classifiers"])


def test_the_oldest_torch_is_one_and_continuous_integration_has_no_older():
    (least,) = (str(r.specifier) for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    least = least.removeprefix(">=")
    assert f"PyTorch {least} or newer" in INSTALL
    assert f"torch ≥ {least}" in (ROOT / "README.md").read_text(encoding="utf-8")
    pinned = re.findall(r"(?m)^torch==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert [Version(version) >= Version(least) for version in pinned] == [True]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"torch(?:==| )([0-9][0-9.]*)", makefile)) == set(pinned)
    assert re.findall(r"torch==([0-9.]+)", " ".join(TOOL["cibuildwheel"]["test-requires"])) == pinned


def test_continuous_integration_is_one_command():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^ +- run: (.*)$", workflow) == [".ci/run"]
