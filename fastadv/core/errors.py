"""The errors that a user can mend: one base, and the built-in class that each of them also is."""

from __future__ import annotations

UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a damaged or hostile description raises: JSON's own errors, and those of values of wrong types."""


class Error(Exception):
    """Base of every error that a user can mend: a wrong argument or file, a missing package, a full disk.

    The command line prints it in one line and exits with code 2; anything else is a fault of fastadv (exit code 70).
    """


class ArgumentError(Error, ValueError):
    """An argument with a wrong value: ``<argument>: expected <what>, got <value>``."""


class ArgumentTypeError(Error, TypeError):
    """An argument of a wrong type."""


class UnknownNameError(Error, KeyError):
    """A name that a source, a model or a table does not have."""

    def __str__(self) -> str:  # KeyError shows the repr of its argument
        return str(self.args[0]) if self.args else ""


class FileError(Error, OSError):
    """The operating system refuses to read or write a file; the message names the file."""


class RemoteError(FileError):
    """The file system of a URL refuses, stalls or breaks off; the message names the URL."""


class MissingPackageError(Error, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class UnavailableError(Error, RuntimeError):
    """What was asked for cannot be had here: a device, a backend, a mode."""
