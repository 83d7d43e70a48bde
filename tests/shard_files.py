"""Shards and runs of made-up images, and their content."""

from pathlib import Path

from rows import row
from run_files import image

from fastadv.data import RunFolder
from fastadv.runs.sharding import Shard

CONFIG = {"attack": {"name": "fim", "eps": 0.03}, "weights": "0a" * 32, "seed": 7}


SHOWN = {"weights": "w.safetensors (sha256 0a0a0a0a)"}


def names(count: int) -> list[str]:
    return [f"P{index % 3}/P{index % 3}_{index:04d}" for index in range(count)]


def write(path: Path, config: dict, order: list[str], *, total: int, software: str = "", finish: bool = True) -> None:
    with RunFolder.open(path, config, shown=SHOWN, beside={".hashes.json": b"{}\n"}, images=total) as run:
        for name in reversed(order):
            run.write(row(name, software=software), image(name))
        if finish:
            run.finish(order)


def write_shards(run: Path, order: list[str], count: int, *, only: set[int] | None = None, **changes) -> None:
    for shard in (Shard(number=k, count=count) for k in range(1, count + 1)):
        if only is None or shard.number in only:
            config = shard.identity({**CONFIG, **changes.get("config", {})})
            given = {name: value for name, value in changes.items() if name != "config"}
            write(shard.folder(run), config, shard.part(order), total=len(order), **given)
