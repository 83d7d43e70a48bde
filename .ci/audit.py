"""Look for known vulnerabilities in the packages of constraints.txt with pip-audit: `make audit`.

Exit status 0: all were checked and none has one; 1: some have; 2: not all could be checked, since no advisory service
answers or it does not know a package. Arguments are given to pip-audit: `--vulnerability-service osv`, `--osv-url URL`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def judge(output: str, errors: str) -> tuple[int, list[str]]:
    """The exit status, and lines for the user, of what pip-audit wrote to its two outputs."""
    try:
        rows = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = ([line.strip() for line in errors.splitlines() if line.strip()] or ["no output"])[-1]
        return 2, [f"advisory service: expected an answer, got {last}; nothing was checked"]
    lines = [
        f"{row['name']} {row['version']}: expected no known vulnerability, got {vulnerability['id']}; "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for row in rows
        for vulnerability in row.get("vulns", [])
    ]
    unknown = [f"{row['name']}: expected advisories, got {row['skip_reason']}" for row in rows if "skip_reason" in row]
    checked = f"{len(rows) - len(unknown)} packages checked"
    return 1 if lines else 2 if unknown or not rows else 0, [*lines, *unknown, checked]


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status, lines = judge(done.stdout, done.stderr)
    print("\n".join(lines))
    sys.exit(status)


if __name__ == "__main__":
    main()
