"""The exact versions that are compared, and those that are here. Used by install.sh, so it imports nothing of ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

#: Distribution and version of each library.
PEERS: Mapping[str, str] = MappingProxyType(
    {
        "torchattacks": "3.5.1",
        "foolbox": "3.3.4",
        "adversarial-robustness-toolbox": "1.20.1",
        "adv-lib": "0.2.8",
        "rai-toolbox": "0.2.1",
    }
)
#: What they import and fastadv does not.
NEEDED: Mapping[str, str] = MappingProxyType({"eagerpy": "0.30.0", "six": "1.17.0", "tqdm": "4.67.1"})


def peer_versions() -> dict[str, str | None]:
    """The installed version of each library, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in (*PEERS, "torch", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--requirements"]:
        print(*(f"{name}=={wanted}" for name, wanted in {**PEERS, **NEEDED}.items()))
    else:
        for name, found in peer_versions().items():
            print(f"{name} {found or 'missing'}")
