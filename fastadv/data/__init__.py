"""Faces in, results out: image files, alignment, data sets, and the folder of a run."""

from fastadv.core.detections import Detections
from fastadv.data.alignment import AlignmentError, align, read_landmarks
from fastadv.data.dealt_pairs import deal_pairs
from fastadv.data.face_detector import FaceDetector
from fastadv.data.faces import Face, FaceSource, SourceError, face_id
from fastadv.data.folder import IdentityFolder
from fastadv.data.images import ImageError, encode_png, read_image, to_tensor, to_uint8, write_png
from fastadv.data.lfw import LFW
from fastadv.data.manifest import ManifestError, ManifestRow, read_manifest
from fastadv.data.pair_bin import PairBin
from fastadv.data.pairs import Pair, PairError, read_pairs_csv, write_pairs_csv
from fastadv.data.run_files import RunFolderError
from fastadv.data.shards import Shards, write_shards
from fastadv.data.stream import Skipped, Stream, StreamError
from fastadv.data.synthetic import SyntheticBatch, SyntheticFaces, render_faces
from fastadv.data.templates import TEMPLATES, Template
from fastadv.data.writer import RunFolder

__all__ = [
    "LFW",
    "TEMPLATES",
    "AlignmentError",
    "Detections",
    "Face",
    "FaceDetector",
    "FaceSource",
    "IdentityFolder",
    "ImageError",
    "ManifestError",
    "ManifestRow",
    "Pair",
    "PairBin",
    "PairError",
    "RunFolder",
    "RunFolderError",
    "Shards",
    "Skipped",
    "SourceError",
    "Stream",
    "StreamError",
    "SyntheticBatch",
    "SyntheticFaces",
    "Template",
    "align",
    "deal_pairs",
    "encode_png",
    "face_id",
    "read_image",
    "read_landmarks",
    "read_manifest",
    "read_pairs_csv",
    "render_faces",
    "to_tensor",
    "to_uint8",
    "write_pairs_csv",
    "write_png",
    "write_shards",
]
