"""``fastadv doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import AsJson


@takes_groups
def doctor(as_json: AsJson = False) -> None:
    """Report versions, CPU and CUDA features, optional packages, and which backend of each operation runs here."""
    from rich.console import Console

    from fastadv.cli import doctor_report as checking
    from fastadv.cli.show import table

    report = checking.examine()
    if as_json:
        print(json.dumps(asdict(report)))
        return
    console = Console()
    console.print(table("fastadv doctor", list(report.facts), ("what", "found")))
    packages = [
        (package.name, package.version or "missing", package.use, "" if package.version else package.install)
        for package in report.packages
    ]
    console.print(table("Optional packages", packages, ("package", "version", "gives", "install")))
    rows = [(b.op, b.backend, "yes" if b.available else "no", b.reason) for b in report.backends]
    console.print(table("Backends", rows, ("operation", "backend", "runs", "why")))
