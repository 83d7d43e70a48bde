"""The optional packages: which extra brings them, what they are for, and one check before the work that needs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from fastadv.core.errors import MissingPackageError


@dataclass(frozen=True, kw_only=True)
class Package:
    """An optional package.

    Attributes:
        module: What is imported.
        distribution: What is installed.
        use: What it gives.
        install: The command that installs it.
    """

    module: str
    distribution: str
    use: str
    install: str

    @property
    def present(self) -> bool:
        """Whether it can be imported; nothing is."""
        return find_spec(self.module) is not None

    @property
    def version(self) -> str | None:
        """Of what is installed; None where it is missing or does not say."""
        try:
            return metadata.version(self.distribution) if self.present else None
        except metadata.PackageNotFoundError:
            return None


def _of(extra: str, use: str, *names: str) -> tuple[Package, ...]:
    """Packages of an extra of ours: ``module`` or ``module=distribution`` each."""
    made = []
    for name in names:
        module, _, distribution = name.partition("=")
        made.append(
            Package(
                module=module, distribution=distribution or module, use=use, install=f"pip install 'fastadv[{extra}]'"
            )
        )
    return tuple(made)


EXTRAS: Mapping[str, tuple[Package, ...]] = MappingProxyType(
    {
        "report": _of("report", "HTML pages and figures", "jinja2", "matplotlib"),
        "serve": _of(
            "serve",
            "the HTTP service",
            "fastapi",
            "uvicorn",
            "python_multipart=python-multipart",
            "prometheus_client=prometheus-client",
        ),
        "train": _of("train", "losses of 'fastadv train'", "pytorch_metric_learning=pytorch-metric-learning"),
        "heic": _of("heic", "HEIC pictures", "pillow_heif=pillow-heif"),
        "onnx": _of("onnx", ".onnx files in and out", "onnx", "onnxruntime", "onnxscript"),
        "faiss": _of("faiss", "faster kNN scores", "faiss=faiss-cpu"),
        "faiss-gpu": _of("faiss-gpu", "faster kNN scores on a GPU", "faiss=faiss-gpu"),
        "pandas": _of("pandas", "results as a table", "pandas"),
        "remote": _of("remote", "faces at a URL", "aiohttp", "fsspec"),
        "s3": _of("s3", "faces at s3:// URLs", "s3fs"),
        "ray": _of("ray", "attacks on many machines", "ray"),
        "cupy-cuda12": _of("cupy-cuda12", "CuPy arrays, CUDA 12", "cupy=cupy-cuda12x"),
        "cupy-cuda13": _of("cupy-cuda13", "CuPy arrays, CUDA 13", "cupy=cupy-cuda13x"),
    }
)
"""By the names of ``pip install 'fastadv[...]'``. Two that bring one module stand in place of each other."""

FURTHER = (
    Package(module="triton", distribution="triton", use="the Triton kernels", install="pip install triton"),
    Package(module="kornia", distribution="kornia", use="jpeg(gradient='kornia')", install="pip install kornia"),
)
"""Packages that no extra brings."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What one command installs.

    Attributes:
        name: Of the extra, or of the package where no extra brings it.
        use: What it gives.
        install: The command that installs it.
        missing: Distributions that are not installed; empty where all are.
    """

    name: str
    use: str
    install: str
    missing: tuple[str, ...]


def extras() -> tuple[Extra, ...]:
    """Each extra, and each package that no extra brings, with what is missing of it.

    Where one of two extras that bring the same module is installed, the other is left out: it cannot stand beside it.
    """
    offered = set(optional_packages())
    parts = {**EXTRAS, **{package.distribution: (package,) for package in FURTHER}}
    parts = {name: packages for name, packages in parts.items() if offered.intersection(packages)}
    return tuple(
        Extra(
            name=name,
            use=packages[0].use,
            install=packages[0].install,
            missing=tuple(package.distribution for package in packages if not package.present),
        )
        for name, packages in parts.items()
    )


def optional_packages() -> tuple[Package, ...]:
    """The optional packages, those of the extras first; of those that bring one module, the one that is installed."""
    found: dict[str, list[Package]] = {}
    for package in (*(p for part in EXTRAS.values() for p in part), *FURTHER):
        found.setdefault(package.module, []).append(package)
    return tuple(package for packages in found.values() for package in _offered(packages))


def _offered(packages: list[Package]) -> list[Package]:
    """Of packages that bring one module: all where it is missing, else the one that it is from, or the first."""
    if not packages[0].present:
        return packages
    return [package for package in packages if package.version is not None][:1] or packages[:1]


def require_extra(extra: str, argument: str, *, only: Collection[str] = ()) -> None:
    """Refuse a call that needs packages that are not installed, before it does any work.

    Args:
        extra: A key of ``EXTRAS``.
        argument: What needs them, for the message: an option or a command.
        only: The modules of it that are needed; all where none is named.

    Raises:
        MissingPackageError: One is missing; the message names all of them and the command that installs them.
    """
    needed = [package for package in EXTRAS[extra] if not only or package.module in only]
    missing = [package for package in needed if not package.present]
    if missing:
        names = ", ".join(package.distribution for package in missing)
        raise MissingPackageError(
            f"{argument}: expected {names} ({EXTRAS[extra][0].use}), got no such package; {missing[0].install}"
        )
