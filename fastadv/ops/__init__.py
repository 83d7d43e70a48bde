"""The fused operations: one public function each, four implementations behind it."""

from fastadv.ops import philox
from fastadv.ops.add_noise import add_noise_
from fastadv.ops.average_pool import average_pool
from fastadv.ops.box_blur import box_blur
from fastadv.ops.centroid_distances import centroid_distances
from fastadv.ops.feature_dropout import feature_dropout
from fastadv.ops.feature_dropout_bn_prelu import feature_dropout_bn_prelu
from fastadv.ops.knn_score import knn_score
from fastadv.ops.momentum_step import momentum_step_, momentum_workspace
from fastadv.ops.pooled_centroid_distances import pooled_centroid_distances
from fastadv.ops.pooled_relative_distances import pooled_relative_distances
from fastadv.ops.prepared_dropout import PreparedDropout
from fastadv.ops.prepared_score import PreparedScore
from fastadv.ops.relative_distances import relative_distances
from fastadv.ops.sign_step import sign_step_

__all__ = [
    "PreparedDropout",
    "PreparedScore",
    "add_noise_",
    "average_pool",
    "box_blur",
    "centroid_distances",
    "feature_dropout",
    "feature_dropout_bn_prelu",
    "knn_score",
    "momentum_step_",
    "momentum_workspace",
    "philox",
    "pooled_centroid_distances",
    "pooled_relative_distances",
    "relative_distances",
    "sign_step_",
]
