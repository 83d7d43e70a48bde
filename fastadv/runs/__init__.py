"""One resumable run over a source of faces: its identity, its folder and its settled choices."""

from fastadv.runs.identity import RunIdentity, UsedFaces, describe, goal_hash, list_hash
from fastadv.runs.settings import settle

__all__ = ["RunIdentity", "UsedFaces", "describe", "goal_hash", "list_hash", "settle"]
