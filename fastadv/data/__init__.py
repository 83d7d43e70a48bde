"""Faces in, results out: image files, alignment, data sets, and the folder of a run."""

from fastadv.data.alignment import AlignmentError, align, read_landmarks
from fastadv.data.faces import Face, FaceSource, SourceError, face_id
from fastadv.data.folder import IdentityFolder
from fastadv.data.images import ImageError, encode_png, read_image, to_tensor, to_uint8, write_png
from fastadv.data.lfw import LFW
from fastadv.data.manifest import ManifestError, ManifestRow, read_manifest
from fastadv.data.pairs import Pair, PairError, read_pairs_csv, write_pairs_csv
from fastadv.data.stream import Skipped, Stream, StreamError
from fastadv.data.writer import RunFolder, RunFolderError

__all__ = [
    "LFW",
    "AlignmentError",
    "Face",
    "FaceSource",
    "IdentityFolder",
    "ImageError",
    "ManifestError",
    "ManifestRow",
    "Pair",
    "PairError",
    "RunFolder",
    "RunFolderError",
    "Skipped",
    "SourceError",
    "Stream",
    "StreamError",
    "align",
    "encode_png",
    "face_id",
    "read_image",
    "read_landmarks",
    "read_manifest",
    "read_pairs_csv",
    "to_tensor",
    "to_uint8",
    "write_pairs_csv",
    "write_png",
]
