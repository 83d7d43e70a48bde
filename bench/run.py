"""Run benchmarks and print a table: ``python -m bench.run ops``.

With ``--json`` the results are also written to ``bench/results/<name>-<device>-<date>.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.about import show, write_results
from bench.registry import REGISTRY, Options

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(f"{k}: {e.what}" for k, e in REGISTRY.items()))
    by_name = ", ".join(k for k, e in REGISTRY.items() if e.by_name)
    parser.add_argument("--all", action="store_true", help=f"every benchmark that can run here but {by_name}")
    parser.add_argument("--only", default="", help="these operations (ops) or attacks (peers, breakdown): 'pgd,fim'")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of ops")
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
    names = args.names or [name for name, entry in REGISTRY.items() if not entry.by_name]
    only = frozenset(filter(None, args.only.split(",")))
    for name in names if only else ():
        if not only & REGISTRY[name].parts:
            parser.error(
                f"--only: expected of {name} {', '.join(sorted(REGISTRY[name].parts)) or 'nothing'}, got {args.only!r}"
            )
    for part in only - frozenset().union(*(REGISTRY[name].parts for name in names)):
        parser.error(f"--only: expected parts of {', '.join(names)}, got {part!r}")
    options = Options(
        data=args.data, device=args.device, quick=args.quick, only=only, compiled=not (args.quick or args.no_compile)
    )
    for name in names:
        entry = REGISTRY[name]
        if entry.needs_data and args.data is None:
            print(f"{name}: skipped, it needs --data or FASTADV_DATA")
            continue
        if entry.needs_gpu and not args.device.startswith("cuda"):
            print(f"{name}: skipped, it needs --device cuda")
            continue
        print(f"{name}: {entry.what}")
        rows = entry.run(options)
        show(rows, entry.groups)
        if args.json and not args.quick:
            write_results(name, rows, device=args.device, out=args.out, at=args.commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
