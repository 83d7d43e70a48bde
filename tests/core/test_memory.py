"""Memory asked for before a library takes it, and errors that stand for its lack."""

import pytest

from fastadv.core.memory import require_memory
from fastadv.models.memory import is_out_of_memory


def test_memory_that_is_there_and_memory_that_no_machine_has() -> None:
    require_memory(2**20)
    with pytest.raises(MemoryError, match="expected 1152921504606846976 bytes more, got none"):
        require_memory(2**60)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SystemError("error return without exception set"), True),
        (SystemError("<built-in function stat> returned NULL without setting an exception"), True),
        (SystemError("bad argument to internal function"), False),
        (caused(ImportError("SciPy seems to be broken"), ImportError("a.so: failed to map segment")), True),
        (caused(ImportError("SciPy seems to be broken"), MemoryError()), True),
        (caused(ImportError("SciPy seems to be broken"), ImportError("a.so: no such file")), False),
        (caused(ValueError("other"), MemoryError()), False),
    ],
)
def test_what_interpreters_and_imports_raise_for_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
