"""Count what remains in a process after much work: ``python -m bench.flat --rounds 10``, ten times the test's work.

Counted are the hooks, threads, file handles, tensors, modules and MiB that are there after the work and were not before
it. The exit code is 1 where something remains.
"""

from __future__ import annotations

import argparse
import sys
import time

from bench.about import HERE, show, write_results

sys.path.append(str(HERE.parent / "tests"))
import flat


def main(arguments: list[str] | None = None) -> int:
    """Parse, work, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.flat", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="Do N times the work of the test (default: 1).")
    parser.add_argument("--json", action="store_true", help="Write the results to bench/results.")
    args = parser.parse_args(arguments)
    rows = []
    for name in flat.WORKS:
        begin = time.perf_counter()
        rows.append({**flat.measured(name, args.rounds), "seconds": round(time.perf_counter() - begin, 1)})
    show(rows)
    if args.json:
        write_results("flat", rows)
    return 0 if all(_flat(row) for row in rows) else 1


def _flat(row: dict[str, object]) -> bool:
    counts = [value for key, value in row.items() if key.endswith("_more") and key != "resident_mib_more"]
    return not any(counts) and float(str(row["resident_mib_more"])) < flat.MOST_RESIDENT


if __name__ == "__main__":
    sys.exit(main())
