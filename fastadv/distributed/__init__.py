"""Attacks on a Ray cluster: many workers with an engine each, the bytes of one process (the extra ``ray``)."""

from fastadv.distributed.cluster import Cluster
from fastadv.distributed.dataset import run

__all__ = ["Cluster", "run"]
