"""``python -m tests.fuzz``: give damaged and hostile files to every reader.

Every reader gets damaged valid files, and files that were written to break it; ``--inputs`` is their number in all.
An input that a reader neither accepts nor refuses by one of its documented errors is a finding: another exception, a
crash, a hang, too much memory, a file handle left open, code that runs. The exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import engines

_GUIDED = 0.1  # of all inputs, where atheris is installed
_KEPT = Path("build") / "fuzz"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="Run N inputs in all (default: 1,000,000).")
    parser.add_argument(
        "--target", action="append", default=[], help="Run this reader; may be repeated (default: all)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the inputs (default: 0).")
    parser.add_argument("--first", type=int, default=0, help="Number of the first input of each reader (default: 0).")
    parser.add_argument(
        "--engine",
        choices=("mutations", "coverage", "both"),
        default="both",
        help="Draw inputs by this engine (default: both).",
    )
    parser.add_argument("--replay", type=Path, help="Run one file with the reader of --target, and minimise it.")
    parser.add_argument("--json", action="store_true", help="Print the results as JSON.")
    parser.add_argument("--out", type=Path, help="Write fuzz-cpu-DATE.json into this folder.")
    parser.add_argument("--guided", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.guided:
        engines.guided(given.guided, count=given.inputs, seed=given.seed, place=given.out)
    _KEPT.mkdir(parents=True, exist_ok=True)
    if given.replay:
        _replay(given.target[0], given.replay)
        return
    results = list(_run(given))
    _tell(results, given)
    sys.exit(any(result.finds for result in results))


def _run(given: argparse.Namespace) -> Any:
    from . import targets

    has_atheris = given.engine != "mutations" and importlib.util.find_spec("atheris") is not None
    for name, count in targets.shares(given.inputs, tuple(given.target)).items():
        target = targets.by_name(name)
        led = has_atheris and target.guided
        guided = round(count * _GUIDED) if led and given.engine == "both" else count if led else 0
        found = []
        if count > guided and given.engine != "coverage":
            found.append(engines.mutations(target, first=given.first, count=count - guided, seed=given.seed, out=_KEPT))
        if guided:
            found.append(engines.coverage(name, count=guided, seed=given.seed, out=_KEPT))
        for result in found:
            print(f"{result.target}, {result.engine}: {result.inputs} inputs, {result.seconds:.0f} s", file=sys.stderr)
            for what, about in result.finds.items():
                print(f"  {about['count']} x {what}: {about['file']}", file=sys.stderr)
            yield result


def _replay(name: str, file: Path) -> None:
    from . import targets
    from .judge import ACCEPTED, REFUSED, judge, smaller

    target, data = targets.by_name(name), file.read_bytes()
    with engines.place_of_files() as place:
        found = judge(target, data, place)
        print(found)
        if found not in (ACCEPTED, REFUSED):
            made = smaller(target, data, found, place)
            file.with_suffix(".small").write_bytes(made)
            print(made[:2000])


def _tell(results: list[engines.Result], given: argparse.Namespace) -> None:
    from bench import about

    rows = [result.row() for result in results]
    described = {
        "benchmark": "fuzz",
        **about.header("cpu"),
        **({"atheris": _version("atheris")} if any(row["engine"] == "coverage" for row in rows) else {}),
        "seed": given.seed,
        "inputs": sum(row["inputs"] for row in rows),
        "finds": sum(row["finds"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "rows": rows,
    }
    text = json.dumps(described, indent=1)
    if given.json:
        print(text)
    else:
        about.show(rows)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"fuzz-cpu-{described['date']}.json").write_text(text + "\n")


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


if __name__ == "__main__":
    main()
