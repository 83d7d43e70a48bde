"""The benchmarks are part of a source checkout, not of an installed package."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

if (ROOT / "bench").is_dir():
    sys.path.append(str(ROOT))
else:
    collect_ignore_glob = ["test_*.py"]
