"""A compiler's warning ends the builds of `make ci`, and of nobody else."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="not in a source tree")


def environment(wanted: str | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FASTADV_WERROR", "MAKE"))}
    return clean if wanted is None else {**clean, "FASTADV_WERROR": wanted}


@pytest.mark.parametrize(("wanted", "strict"), [(None, False), ("", False), ("off", False), ("on", True)])
def test_the_commands_of_a_build(wanted, strict, tmp_path):
    cmake, ninja = (shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.defpath}") for name in ("cmake", "ninja"))
    if cmake is None or ninja is None or importlib.util.find_spec("pybind11") is None:
        pytest.skip("cmake, ninja or pybind11 is not installed")
    place = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True)
    words = [cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DFASTADV_CUDA=off"]
    words += ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    words += [f"-Dpybind11_DIR={place.stdout.strip()}"]
    subprocess.run(words, check=True, capture_output=True, env=environment(wanted))
    commands = [entry["command"] for entry in json.loads((tmp_path / "compile_commands.json").read_text())]
    assert commands
    assert all("-Wall" in command for command in commands)
    assert {"-Werror" in command for command in commands} == {strict}


def test_the_build_backend_passes_the_variable_on(monkeypatch):
    reader = pytest.importorskip("scikit_build_core.settings.skbuild_read_settings").SettingsReader
    for value, expected in (("on", "on"), (None, "off")):
        if value is None:
            monkeypatch.delenv("FASTADV_WERROR", raising=False)
        else:
            monkeypatch.setenv("FASTADV_WERROR", value)
        found = reader.from_file(str(ROOT / "pyproject.toml")).settings.cmake.define
        assert str(found["FASTADV_WERROR"]) == expected


def test_make_ci_sets_it_and_make_test_does_not():
    if shutil.which("make") is None or not (ROOT / "Makefile").exists():
        pytest.skip("no make")
    show = "show: ; @echo found=$$FASTADV_WERROR"
    targets = ("lint", "types", "docs", "test", "test-slow", "sanitize-quick", "wheel-test", "install-test")
    skipped = [word for name in targets for word in ("-o", name)]
    for target, expected in (("ci", "found=on"), ("test", "found=")):
        words = ["make", "-s", *skipped, f"--eval={target}: show", f"--eval={show}"]
        done = subprocess.run(
            [*words, target if target == "ci" else "show"],
            capture_output=True, text=True, cwd=ROOT, check=True, env=environment(None),
        )  # fmt: skip
        assert done.stdout.split() == [expected]
