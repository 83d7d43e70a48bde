"""Detection of adversarial examples from what a network computes on the way to its answer."""

from fastadv.detection.neighbours import Found, Neighbours

__all__ = ["Found", "Neighbours"]
