"""Triton kernels compiled for GPUs that are not there, and what their code must not hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

_PREAMBLE = """
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
"""


def compiled(script: str) -> dict[str, str]:
    """PTX by name, of the kernels that ``script`` gives to ``build(name, kernel, signature, constants, target)``.

    In a process of its own: under the interpreter, which other tests use, nothing compiles.
    """
    code = f"{_PREAMBLE}\n{script}\njson.dump(made, sys.stdout)\n"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def inexact(text: str) -> set[str]:
    """Instructions that drop a NaN, or round otherwise than IEEE 754 says: minimum, maximum, fused, approximate."""
    odd = r"\b(?:min|max)(?:\.ftz)?\.f(?:32|64)|\b(?:fma|mad)\.rn\S*\.f\d+|\S+\.ftz\S*|\S+\.approx\S*|div\.full\S*"
    return set(re.findall(odd, text))
