"""Face models: images in [0, 1] to embeddings, published architectures, checked weights, fast copies."""

from fastadv.models.batching import fixed_batches
from fastadv.models.checkpoints import CheckpointError, read_state_dict
from fastadv.models.devices import open_device
from fastadv.models.face_model import PRECISIONS, FaceModel
from fastadv.models.folding import fold_batch_norms
from fastadv.models.inspection import Inspected, inspect_file
from fastadv.models.layers import freeze, in_precision, prepare
from fastadv.models.mirrored import mirrored
from fastadv.models.mtcnn import MTCNN
from fastadv.models.onnx_model import load_onnx
from fastadv.models.wrap import wrap
from fastadv.models.zoo import load, names, shipped_names

__all__ = [
    "MTCNN",
    "PRECISIONS",
    "CheckpointError",
    "FaceModel",
    "Inspected",
    "fixed_batches",
    "fold_batch_norms",
    "freeze",
    "in_precision",
    "inspect_file",
    "load",
    "load_onnx",
    "mirrored",
    "names",
    "open_device",
    "prepare",
    "read_state_dict",
    "shipped_names",
    "wrap",
]
