"""Faces in, results out: image files, alignment, data sets, and the folder of a run."""

from fastadv.core.detections import Detections
from fastadv.core.templates import TEMPLATES, Template
from fastadv.data.alignment import AlignmentError, align
from fastadv.data.dealt_pairs import deal_pairs
from fastadv.data.face import Face, face_id
from fastadv.data.face_detector import FaceDetector
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.folder import IdentityFolder
from fastadv.data.image_list import ImageList
from fastadv.data.images import ImageError, encode_png, read_image, to_tensor, to_uint8, write_png
from fastadv.data.landmark_lists import read_landmarks
from fastadv.data.lfw import LFW
from fastadv.data.manifest import ManifestError, ManifestRow, read_manifest
from fastadv.data.pair_bin import PairBin
from fastadv.data.pair_lists import read_pair_list
from fastadv.data.pairs import Pair, PairError, read_pairs_csv, write_pairs_csv
from fastadv.data.record_io import RecordIO
from fastadv.data.run_files import RunFolderError
from fastadv.data.shards import Shards, write_shards
from fastadv.data.stream import Skipped, Stream, StreamError
from fastadv.data.synthetic import SyntheticBatch, SyntheticFaces, render_faces
from fastadv.data.template_pairs import IJB, TemplatePairs, read_ytf
from fastadv.data.writer import RunFolder

__all__ = [
    "IJB",
    "LFW",
    "TEMPLATES",
    "AlignmentError",
    "Detections",
    "Face",
    "FaceDetector",
    "FaceSource",
    "IdentityFolder",
    "ImageError",
    "ImageList",
    "ManifestError",
    "ManifestRow",
    "Pair",
    "PairBin",
    "PairError",
    "RecordIO",
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
    "TemplatePairs",
    "align",
    "deal_pairs",
    "encode_png",
    "face_id",
    "read_image",
    "read_landmarks",
    "read_manifest",
    "read_pair_list",
    "read_pairs_csv",
    "read_ytf",
    "render_faces",
    "to_tensor",
    "to_uint8",
    "write_pairs_csv",
    "write_png",
    "write_shards",
]
