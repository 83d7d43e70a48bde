"""Let the timings import this folder; appended, so that an installed fastadv comes before the source tree."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
