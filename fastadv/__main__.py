"""``python -m fastadv``: the command line."""

from fastadv.cli import main

main()
