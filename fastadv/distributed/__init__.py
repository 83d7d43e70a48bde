"""Attacks on a Ray cluster: workers with one engine each, results with the bytes of one process (extra ``ray``)."""

from fastadv.distributed.cluster import Cluster
from fastadv.distributed.dataset import run

__all__ = ["Cluster", "run"]
