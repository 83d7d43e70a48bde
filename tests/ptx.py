"""Triton kernels compiled for GPUs that are not there, and what their code must not hold."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# reads a script a line and answers with a line; the imports, which take longer than the kernels of a script, once
_COMPILER = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

made = {}

def build(name, kernel, signature, constants, target):
    full = {arg: signature.get(arg, "constexpr") for arg in kernel.arg_names}
    constexprs = {arg: constants.get(arg) for arg, kind in full.items() if kind == "constexpr"}
    source = ASTSource(kernel, full, {(kernel.arg_names.index(k),): v for k, v in constexprs.items()})
    made[name] = triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]

for line in sys.stdin:
    made.clear()
    exec(json.loads(line), {"build": build, "GPUTarget": GPUTarget})
    print(json.dumps(made), flush=True)
"""


@cache
def _compiler() -> tuple[subprocess.Popen[str], str]:
    """A process of its own, as nothing compiles under the interpreter, which other tests use; and where its errors go.

    It lives as long as the tests.
    """
    errors = tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False)  # noqa: SIM115
    with errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMPILER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TRITON_INTERPRET": "0"},
        )
    atexit.register(os.unlink, errors.name)
    atexit.register(process.communicate)  # the end of its input is its end
    return process, errors.name


def compiled(script: str) -> dict[str, str]:
    """PTX by name, of the kernels that ``script`` gives to ``build(name, kernel, signature, constants, target)``."""
    process, errors = _compiler()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(script), file=process.stdin, flush=True)
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        _compiler.cache_clear()  # what follows has another one
        process.wait()
        raise AssertionError(Path(errors).read_text())
    return dict(json.loads(answer))


def inexact(text: str) -> set[str]:
    """Instructions that drop a NaN, or round otherwise than IEEE 754 says: minimum, maximum, fused, approximate."""
    odd = r"\b(?:min|max)(?:\.ftz)?\.f(?:32|64)|\b(?:fma|mad)\.rn\S*\.f\d+|\S+\.ftz\S*|\S+\.approx\S*|div\.full\S*"
    return set(re.findall(odd, text))
