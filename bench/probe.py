"""One call of the command line, and what it took: ``python -m bench.probe RESULT.json [--memory] -- ARGUMENTS``.

In a process of its own. Events of Python (``sys.addaudithook``) count the operations on files; calls of ``stat`` are no
such events. With ``--memory`` every allocation of Python and of Arrow is traced, which makes the times useless.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from pathlib import Path

_OPERATIONS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"})


def _bytes() -> dict[str, int]:
    """Bytes that the process has read and written, from files in the cache too."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(value) for name, value in lines if name in ("rchar", "wchar")}


def main() -> int:
    """Run, measure, write."""
    at = sys.argv.index("--")
    result, memory, arguments = Path(sys.argv[1]), "--memory" in sys.argv[:at], sys.argv[at + 1 :]
    from fastadv.cli import main as command

    events: list[str] = []  # appending is one step for all threads
    sys.addaudithook(lambda event, _: events.append(event) if event in _OPERATIONS else None)
    sys.argv = ["fastadv", *arguments]
    before, status = _bytes(), 0
    if memory:
        tracemalloc.start()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        command()
    except SystemExit as left:
        status = int(left.code or 0)
    found: dict[str, float] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    if memory:
        import pyarrow

        found["memory"] = tracemalloc.get_traced_memory()[1] + pyarrow.default_memory_pool().max_memory()
    found["operations"] = len(events)
    found.update({name: value - before[name] for name, value in _bytes().items()})
    result.write_text(json.dumps(found))
    return status


if __name__ == "__main__":
    sys.exit(main())
