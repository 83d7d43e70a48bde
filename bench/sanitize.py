"""The C++ of the operations under AddressSanitizer, UBSan and ThreadSanitizer: ``python -m bench.sanitize``.

Three parts: the operations' tests with a sanitized compiled module; every operation called from a program without
Python (tests/native/driver.cpp) for leaks; and the same program for races, from several threads at once. Each
sanitizer first has to report a fault that is there on purpose. The exit code is 1 at the first report or failed test.
Needs GCC, whose runtime can be loaded before Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.about import show, write_results

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "sanitize"
MEMORY, THREADS = "address,undefined,float-cast-overflow", "thread"
#: Of an interpreted kernel a sanitizer sees nothing, and takes hours.
TESTS = ("tests/ops", "-m", "not slow and not gpu", "-k", "not triton")

_CALL = """
import ctypes, importlib.util, os
spec = importlib.util.spec_from_file_location("_C", os.environ["FASTADV_SANITIZED"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x, out = ((ctypes.c_float * 1024)() for _ in range(2))
module.cpu_box_blur(ctypes.addressof(x) + {offset}, ctypes.addressof(out), 0, 1, {rows}, 32, 1, 1, 0)
"""
FAULTS = {
    "heap-buffer-overflow": _CALL.format(offset=0, rows=33),
    "signed integer overflow": _CALL.format(offset=0, rows=2**62),
}


class ReportedError(Exception):
    """A sanitizer or a test has found something, or a sanitizer has not found what was put there."""


@dataclass(kw_only=True)
class Sanitizers:
    """Where the sanitized builds are, and what was run.

    Attributes:
        compiler: The C++ compiler.
        rows: What was run, and its figures.
    """

    compiler: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Of the compiler."""
        return _output(self.compiler, "--version").splitlines()[0]

    def build(self, name: str, sanitizers: str, *targets: str) -> Path:
        """Configure and build; the folder."""
        folder = FOLDER / name
        paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        cmake = shutil.which("cmake", path=paths) or "cmake"
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=paths) else []
        options = {
            "CMAKE_CXX_COMPILER": self.compiler,
            "FASTADV_CUDA": "off",
            "FASTADV_SANITIZE": sanitizers,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": _output(sys.executable, "-m", "pybind11", "--cmakedir"),
        }
        begin = time.perf_counter()
        settings = [f"-D{key}={value}" for key, value in options.items()]
        self._run([cmake, "-S", str(ROOT), "-B", str(folder), *generator, *settings], {"PATH": paths})
        self._run([cmake, "--build", str(folder), "--target", *targets], {"PATH": paths})
        self._add(f"build: {sanitizers}", begin)
        return folder

    def test_operations(self, build: Path) -> None:
        """The operations' tests with the sanitized module, in as many processes as there are cores."""
        environment = self._before_python(build)
        for expected, program in FAULTS.items():
            self._must_report(expected, [sys.executable, "-c", program], environment)
        found = _output(
            *(sys.executable, "-c", "from fastadv import _native; print(_native.module().__file__)"), env=environment
        )
        if found != environment["FASTADV_SANITIZED"]:
            raise ReportedError(f"compiled module: expected {environment['FASTADV_SANITIZED']}, got {found}")
        results, begin = FOLDER / "tests.xml", time.perf_counter()
        workers = ["-n", str(os.cpu_count() or 1)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *workers, *TESTS]
        self._run([*command, f"--junitxml={results}"], environment)
        (suite,) = ElementTree.parse(results).getroot().iter("testsuite")
        count = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
        if count["tests"] <= count["skipped"] or count["failures"] or count["errors"]:
            raise ReportedError(f"tests: expected some, and all to pass, got {count}")
        passed = count["tests"] - count["skipped"]
        self._add("operations' tests: ASan, UBSan", begin, tests=passed, skipped=count["skipped"])

    def drive(self, what: str, build: Path, options: Mapping[str, str], *arguments: str) -> None:
        """The program without Python."""
        begin = time.perf_counter()
        text = self._run([str(build / "driver"), *arguments], options)
        self._add(what, begin, **json.loads(text.splitlines()[-1]))

    def leak(self, build: Path) -> None:
        """The program under LeakSanitizer, which first has to report a leak."""
        options = {"ASAN_OPTIONS": _reports("memory"), "UBSAN_OPTIONS": _reports("memory")}
        self._must_report("detected memory leaks", [str(build / "driver"), "--leak"], options)
        self.drive("leaks: ASan, UBSan", build, options)

    def race(self, build: Path) -> None:
        """The program under ThreadSanitizer, which first has to report a race."""
        options = {"TSAN_OPTIONS": f"halt_on_error=1:{_reports('race')}"}
        self._must_report("data race", [str(build / "driver"), "--race"], options)
        self.drive("threads: TSan", build, options)
        self.drive("threads: TSan", build, options, str(build / "libteam.so"))

    def _before_python(self, build: Path) -> dict[str, str]:
        """What lets Python load a sanitized module: the runtimes first, and no allocator of its own."""
        (module,) = build.glob("_C.*.so")
        libraries = [_output(self.compiler, f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so.6")]
        if not all(map(os.path.isabs, libraries)):
            raise ReportedError(
                f"{self.compiler}: expected GCC with libasan, got {_output(self.compiler, '--version')}"
            )
        return {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": f"detect_leaks=0:{_reports('memory')}",  # Python and torch leave memory behind on purpose
            "UBSAN_OPTIONS": f"print_stacktrace=1:{_reports('memory')}",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(ROOT / "tests" / "native" / "site"),
            "FASTADV_SANITIZED": str(module),
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "passive",
        }

    def _run(self, command: Sequence[str], more: Mapping[str, str]) -> str:
        done = subprocess.run(
            command, env={**os.environ, **more}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        reports = sorted(FOLDER.glob("report.*"))
        if done.returncode or reports:
            said = "\n".join([done.stdout[-4000:], done.stderr, *(path.read_text() for path in reports)])
            raise ReportedError(f"{' '.join(command[:3])} ended with {done.returncode}, {len(reports)} reports\n{said}")
        return done.stdout

    def _must_report(self, expected: str, command: Sequence[str], more: Mapping[str, str]) -> None:
        try:
            self._run(command, more)
        except ReportedError as error:
            if expected not in str(error):
                raise
        else:
            raise ReportedError(f"{command[0]}: expected a report of {expected}, got none")
        _clear()

    def _add(self, what: str, begin: float, **figures: Any) -> None:
        self.rows.append({"what": what, **figures, "seconds": round(time.perf_counter() - begin, 1)})
        print(f"{what}: {self.rows[-1]['seconds']} s", flush=True)


def _reports(kind: str) -> str:
    """Options for reports that no test can swallow."""
    return f"log_path={FOLDER / 'report'}.{kind}"


def _clear() -> None:
    for path in FOLDER.glob("report.*"):
        path.unlink()


def _output(*command: str, env: Mapping[str, str] | None = None) -> str:
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Run only the parts under TSan, as CI does.")
    parser.add_argument("--json", action="store_true", help="Write the results to bench/results.")
    args = parser.parse_args(arguments)
    sanitizers = Sanitizers(compiler=os.environ.get("CXX", "c++"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    _clear()
    try:
        sanitizers.race(sanitizers.build("threads", THREADS, "driver", "team"))
        if not args.quick:
            memory = sanitizers.build("memory", MEMORY, "_C", "driver")
            sanitizers.leak(memory)
            sanitizers.test_operations(memory)
    except ReportedError as error:
        print(error, file=sys.stderr)
        return 1
    show(sanitizers.rows)
    if args.json:
        write_results("sanitize", sanitizers.rows, compiler=sanitizers.version, reports=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
