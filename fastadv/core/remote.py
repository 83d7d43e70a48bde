"""A URL as a path: files that fsspec reads and lists, with the methods of `pathlib`."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path, PosixPath
from typing import Any, cast
from urllib.parse import quote, unquote

from fastadv.core.errors import ArgumentError, Error, FileError, MissingPackageError, RemoteError
from fastadv.core.extras import require_extra

TIMEOUT = 120.0  # seconds that one request may take, with the file system's own retries
_AGAIN = (0.2, 1.0)  # seconds before a request over HTTP, which fsspec does not repeat, is made again
_UNTIMED = ("find", "get_file")  # a listing of millions and a large file take longer
_URL = re.compile(r"((?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_HTTP = ("http", "https")
_VERSIONS = frozenset(
    {"etag", "content-md5", "digest", "last-modified", "lastmodified", "last_modified", "md5hash", "mtime", "modified"}
    | {"created", "generation", "versionid"}
)
_CACHING = tuple(threading.Lock() for _ in range(64))  # by file: fsspec's caches give out a file that is half there
_LOGINS: dict[str, str] = {}  # "user:password" by "scheme://host"
_QUERIES: dict[str, str] = {}  # by what is shown of the URL


def to_path(path: str | os.PathLike[str]) -> Path:
    """The path, or the `RemotePath` of a URL; also of a URL that `pathlib.Path` has shortened to ``s3:/bucket``."""
    if isinstance(path, RemotePath):
        return path
    match = _URL.fullmatch(os.fspath(path))
    if match is None or not (isinstance(path, Path) or match[2].startswith("//")):
        return path if isinstance(path, Path) else Path(path)
    scheme, _, rest = match.groups()
    if scheme == "file":
        return Path("/", rest)
    query = ""
    if scheme.rpartition("::")[2] in _HTTP:
        rest, _, query = rest.partition("#")[0].partition("?")
        rest = unquote(rest)
    host, _, inner = rest.partition("/")
    login, _, bare = host.rpartition("@")
    if ":" in login:  # without a password it is a part of the place, as of abfs://container@account
        host = bare
        _LOGINS[f"{scheme}://{host}"] = login
    made = RemotePath(f"{scheme}:", host, inner.lstrip("/"))
    if query:
        _QUERIES[str(made.parent if "{" in made.name else made)] = query
    return made


def without_secrets(text: str) -> str:
    """The text with asterisks in place of the passwords and queries of the URLs that `to_path` was given."""
    for secret in (*_LOGINS.values(), *_QUERIES.values()):
        text = text.replace(secret, "***")
    return text


def is_remote(path: object) -> bool:
    """Whether a path is a `RemotePath`."""
    return isinstance(path, RemotePath)


class RemotePath(PosixPath):
    """A URL as a path: parts and methods are those of `pathlib`, and fsspec reads and lists the files.

    As text it is the URL without password and query. Where the file system refuses an operation, the error is a
    `FileError` with this URL: a plain one if there is no such file, else a `RemoteError`.
    """

    def __str__(self) -> str:
        parts = self.parts
        if parts and parts[0].endswith(":"):
            return f"{parts[0]}//{'/'.join(parts[1:])}"
        return "/".join(parts) or "."  # relative to a URL

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> Any:
        return to_path, (self.url,)

    @property
    def url(self) -> str:
        """The whole URL, with password and query, for the file system."""
        shown = str(self)
        scheme, _, rest = shown.partition("://")
        host, slash, inner = rest.partition("/")
        login, query = _LOGINS.get(f"{scheme}://{host}"), None
        if scheme.rpartition("::")[2] in _HTTP:
            inner = quote(inner, safe="/:@!$&'()*+,;=~")
            query = next(filter(None, map(_QUERIES.get, (shown, *map(str, self.parents)))), None) if _QUERIES else None
        whole = f"{scheme}://{f'{login}@' if login else ''}{host}{slash}{inner}"
        return f"{whole}?{query}" if query else whole

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() == "directory"

    def read_bytes(self) -> bytes:
        return cast(bytes, self._ask("cat_file"))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        return (self / name for name, _ in self._children())

    def glob(self, pattern: str, **options: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        return (each for each in (self.iterdir() if self.is_dir() else ()) if fnmatch.fnmatchcase(each.name, pattern))

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def absolute(self) -> RemotePath:
        return self

    def copy_to(self, file: Path) -> None:
        """Copy the file to a local file."""
        self._ask("get_file", str(file))

    def write_bytes(self, data: bytes) -> int:  # type: ignore[override]
        self._ask("pipe_file", data)
        return len(data)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self._ask("rm_file")

    def size(self) -> int:
        """The size of the file in bytes."""
        found = self._ask("info").get("size")
        if found is None:
            raise _error(self, "the server does not say the size of the file")
        return int(found)

    def stamp(self) -> tuple[int, int, int, int] | None:
        """Size, hash of the version (ETag, time of modification), and two zeros; None if there is no version.

        Raises:
            FileError: There is no such file, or the request fails.
        """
        info = self._ask("info")
        known = sorted((key.lower(), str(value)) for key, value in info.items() if value and key.lower() in _VERSIONS)
        version = int.from_bytes(hashlib.sha256(repr(known).encode()).digest()[:8], "big")
        return (int(info.get("size") or 0), version, 0, 0) if known else None

    def fetch(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, or to the end of the file if that comes first."""
        try:
            data = cast(bytes, self._ask("cat_file", start=start, end=end))
        except RemoteError:
            if start or self.size():  # of an empty file servers refuse every range
                raise
            return b""
        if len(data) > end - start:
            raise _error(self, "expected a server that sends a part of a file, got the whole; copy the file first")
        return data

    def tree(self) -> dict[str, dict[str, bool]]:
        """Every folder below this one by relative path ("": this one): its names, and whether each is a folder."""
        found: dict[str, dict[str, bool]] = {"": {}}
        for inner, is_folder in self._all_below():
            parts = inner.split("/")
            if "" in parts or "." in parts:
                raise _error(self, f"expected names without an empty part or '.', got {inner!r}")
            for depth, part in enumerate(parts):
                above, folder = found["/".join(parts[:depth])], is_folder or depth < len(parts) - 1
                above[part] = folder or above.get(part, False)
                if folder:
                    found.setdefault("/".join(parts[: depth + 1]), {})
        return found

    def _all_below(self) -> Iterator[tuple[str, bool]]:
        """The files and known folders below this one, by relative path; in one listing where possible."""
        _, lister, path = self._file_system()
        from fsspec import AbstractFileSystem
        from fsspec.asyn import AsyncFileSystem

        own, common = getattr(type(lister), "_find", None), AsyncFileSystem._find
        if not type(lister).async_impl:
            own, common = type(lister).find, AbstractFileSystem.find
        if own is not common:
            for name in self._ask("find"):
                inner = name.removeprefix(path).removeprefix("/")
                if inner:
                    yield inner.rstrip("/"), inner.endswith("/")
            return
        waiting = [""]  # fsspec's own walk leaves out a folder that it cannot list
        while waiting:
            above = waiting.pop()
            for name, folder in (self / above)._children():
                yield f"{above}{name}", folder
                if folder:
                    waiting.append(f"{above}{name}/")

    def _children(self) -> Iterator[tuple[str, bool]]:
        """The names in the folder, and whether each is a folder."""
        *_, path = self._file_system()
        for info in self._ask("ls", detail=True):
            name = info["name"].removeprefix(path.rstrip("/")).strip("/")
            if self._scheme in _HTTP:  # links to parents, elsewhere, and to the same page in another order
                name = "" if "?" in name or "#" in name or not info["name"].startswith(path) else unquote(name)
            if name and "/" not in name:
                yield name, info["type"] == "directory"

    @property
    def _scheme(self) -> str:
        return self.parts[0].rstrip(":").rpartition("::")[2]

    def _kind(self) -> str | None:
        try:
            found = self._ask("info")["type"]
        except RemoteError:
            raise
        except FileError:
            return None
        if self._scheme in _HTTP:  # where a folder is a page of links, and every page a file
            return "directory" if self._ask("isdir") else "file"
        return str(found)

    def _file_system(self) -> tuple[Any, Any, str]:
        """The file system that reads, the one that lists (behind a cache, the cached one), and the path in them."""
        require_extra("remote", str(self), only=("fsspec", *(("aiohttp",) if self._scheme in _HTTP else ())))
        if self._scheme in ("s3", "s3a"):
            require_extra("s3", str(self))
        from fsspec.core import url_to_fs
        from fsspec.implementations.cached import CachingFileSystem

        try:
            reader, path = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise MissingPackageError(f"{self}: expected the package of {self._scheme}://, got none: {error}") from None
        except Exception as error:
            if str(error).startswith("Protocol not known"):
                known = "a protocol of fsspec, such as s3, gs or https"
                raise ArgumentError(f"{self}: expected {known}, got {self._scheme}") from None
            raise _refused(error, self)[0] from None
        cached = issubclass(type(reader), CachingFileSystem)  # whose attributes are those of the cached one
        return reader, object.__getattribute__(reader, "__dict__")["fs"] if cached else reader, path

    def _ask(self, operation: str, *given: object, **how: Any) -> Any:
        """Call an operation of the file system on this file or folder.

        Raises:
            RemoteError: It is refused, or there is no answer in time.
            FileError: There is no such file or folder.
        """
        reader, lister, path = self._file_system()
        asked = reader if operation in ("cat_file", "get_file") else lister
        if type(asked).async_impl and operation not in _UNTIMED:
            how["timeout"] = TIMEOUT
        pauses = iter(_AGAIN)
        while True:
            try:
                with _CACHING[hash(path) % len(_CACHING)] if asked is not lister else nullcontext():
                    return getattr(asked, operation)(path, *given, **how)
            except Exception as error:
                refused, again = _refused(error, self)
                pause = next(pauses, None)
                if pause is None or not again:
                    raise refused from None
            time.sleep(pause)


def _refused(error: Exception, path: RemotePath) -> tuple[Error, bool]:
    """The error as a fastadv error without secrets, and whether another try may help."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _of_http(cause):
        error = cause  # fsspec says of all that HTTP answers that there is no such file
    status = getattr(error, "status", None)
    again = _of_http(error) and (status is None or status >= 500)
    if isinstance(error, Error):
        return error, False
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileError(errno.ENOENT, "no such file or bucket", str(path)), False
    if isinstance(error, PermissionError) or status in (401, 403):
        text = "access is denied; check the credentials in the environment"
    elif isinstance(error, TimeoutError):
        text, again = f"no answer within {TIMEOUT:g} s", False
    elif status is not None:
        text = f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    else:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    return _error(path, without_secrets(text)), again


def _error(path: RemotePath, text: str) -> RemoteError:
    return RemoteError(errno.EREMOTEIO, text, str(path))


def _of_http(error: Exception) -> bool:
    return type(error).__module__.startswith("aiohttp")


class Ranges(io.RawIOBase):
    """The bytes of a file at a URL; each read is one request."""

    def __init__(self, path: RemotePath, *, exact: bool) -> None:
        """Open at the beginning.

        Args:
            path: The file.
            exact: Whether no read goes beyond the end, so that the size is not requested.
        """
        self._path, self._exact, self._at = path, exact, 0

    @cached_property
    def _size(self) -> int:
        return self._path.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = 0 if whence == os.SEEK_SET else self._at if whence == os.SEEK_CUR else self._size
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = self._at + len(buffer)
        end = end if self._exact else min(end, self._size)
        data = self._path.fetch(self._at, end) if end > self._at else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
