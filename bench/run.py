"""Run benchmarks and print a table: ``python -m bench.run ops``.

With ``--json`` the results are also written to ``bench/results/<name>-<device>-<date>.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from bench.registry import REGISTRY, Options, Row
from fastadv.core.provenance import commit, versions

HERE = Path(__file__).parent


def device_name(device: str) -> str:
    """The processor or the card, as its maker calls it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found.group(1) if found else platform.processor()}, {torch.get_num_threads()} threads"


def header(device: str) -> dict[str, Any]:
    """Where and with what the figures were taken."""
    return {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        **versions(),
        "commit": commit(HERE.parent),
    }


def show(rows: list[Row]) -> None:
    """Print rows as a table with aligned columns."""
    if not rows:
        return
    names = list(dict.fromkeys(k for row in rows for k in row))
    cells = [names] + [
        [f"{row.get(n, ''):.4g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        for row in rows
    ]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(f"{k}: {e.what}" for k, e in REGISTRY.items()))
    parser.add_argument("--all", action="store_true", help="every benchmark that can run here")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("FASTADV_DATA"), help="folder with lfw/ and weights/"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few repeats: see that it runs; writes nothing")
    parser.add_argument("--commit", help="of the source, where it cannot be read from the folder itself")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--json", action="store_true", help="write the results below --out, not only the table")
    args = parser.parse_args(arguments)
    unknown = [n for n in args.names if n not in REGISTRY]
    if unknown or not (args.names or args.all):
        parser.error(f"name one of {', '.join(REGISTRY)}" + (f", got {unknown[0]!r}" if unknown else ""))
    options = Options(data=args.data, device=args.device, quick=args.quick)
    for name in args.names or REGISTRY:
        entry = REGISTRY[name]
        if entry.needs_data and args.data is None:
            print(f"{name}: skipped, it needs --data or FASTADV_DATA")
            continue
        print(f"{name}: {entry.what}")
        rows = entry.run(options)
        show(rows)
        if args.json and not args.quick:
            about = header(args.device)
            about["commit"] = args.commit or about["commit"]
            path = args.out / f"{name}-{args.device.split(':')[0]}-{about['date']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"benchmark": name, **about, "rows": rows}, indent=1) + "\n")
            print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
