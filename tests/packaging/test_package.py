"""What is in a wheel, what the compiled module needs, and that it stands on its own."""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastadv
from fastadv import _native

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    for needed in ("scikit_build_core", "pybind11"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("not in a source tree")
    folder = tmp_path_factory.mktemp("wheel")
    # A build folder of its own: the one of the editable install stays as it is.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    command += ["--disable-pip-version-check", "-w", str(folder), "-C", f"build-dir={folder / 'build'}"]
    # Unoptimised: the test looks at what is packed, not at how fast it is.
    command += ["-C", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0", "-C", "build.verbose=false", str(ROOT)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "FASTADV_CUDA": "off"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("fastadv-*.whl")
    return made


@pytest.mark.slow  # each worker that has one of the two builds the wheel
def test_the_wheel_holds_the_package_and_no_sources(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for stem in ("sign_step", "momentum_step"):
        assert f"fastadv/kernels/triton/{stem}.py" in names
        assert f"fastadv/ops/reference/{stem}.py" in names
    assert "fastadv/py.typed" in names
    assert "fastadv/testing/cases.py" in names
    assert sum(name.startswith("fastadv/_C.") for name in names) == 1
    assert not [name for name in names if name.endswith((".cu", ".cuh", ".h", ".cpp", ".pyc", ".txt.in"))]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastadv"}


@pytest.mark.slow
def test_the_wheel_is_used_from_its_own_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import importlib.util, sys
sys.path[:] = [sys.argv[1]] + [p for p in sys.path if "fastadv" not in p]
names = [(f, f"{type(f).__module__} {type(f).__name__}".lower()) for f in sys.meta_path]
sys.meta_path[:] = [f for f, name in names if "editable" not in name and "scikitbuild" not in name]
from fastadv import ops, _native
import fastadv.kernels.triton
import torch
assert _native.module().__file__.startswith(sys.argv[1]), _native.module().__file__
assert fastadv.kernels.triton.__file__.startswith(sys.argv[1])
assert _native.cuda_architectures() == ()
x = torch.full((1, 2), 0.5)
ops.sign_step_(x, torch.tensor([[1.0, -1.0]]), x.clone(), alpha=0.25, eps=1.0, backend="cpu")
assert x.tolist() == [[0.75, 0.25]]
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_compiled_module_imports_without_torch():
    path = _native.module().__file__
    code = """
import importlib.util, sys
for name in ("torch", "numpy", "fastadv"):
    sys.modules[name] = None
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.cpu_isas()[0] == "baseline"
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path(fastadv.__file__).is_relative_to(ROOT), reason="not an editable install")
def test_the_check_of_an_installed_package_refuses_the_source_tree():
    command = [sys.executable, "-I", str(ROOT / ".ci" / "check_install.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("folder of fastadv: expected ")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_compiled_module_links_the_system_only():
    listed = subprocess.run(
        ["readelf", "-d", _native.module().__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]\n") for line in listed.splitlines() if "(NEEDED)" in line]
    allowed = (
        "libc.so",
        "libm.so",
        "libstdc++.so",
        "libgcc_s.so",
        "libpthread.so",
        "libdl.so",
        "librt.so",
        "ld-linux",
    )
    assert needed
    assert not [name for name in needed if not name.startswith(allowed)], needed
    assert "RPATH" not in listed
    assert "RUNPATH" not in listed
