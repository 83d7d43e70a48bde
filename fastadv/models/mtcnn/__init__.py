"""MTCNN (Zhang et al. 2016): faces and five landmarks in photographs, batched over pictures."""

from fastadv.models.mtcnn.detector import MTCNN

__all__ = ["MTCNN"]
