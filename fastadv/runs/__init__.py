"""One resumable run over a source of faces: its identity, its folder and its settled choices."""

from fastadv.runs.identity import RunIdentity, UsedFaces, describe, describe_engine, goal_hash, list_hash
from fastadv.runs.work import Work

__all__ = ["RunIdentity", "UsedFaces", "Work", "describe", "describe_engine", "goal_hash", "list_hash"]
