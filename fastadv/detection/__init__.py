"""Detection of adversarial examples from what a network computes on the way to its answer."""

from fastadv.detection.calibration import ExpectedRate, Thresholds, calibrate, expected_rate, images_for
from fastadv.detection.detectors import Detector, load_detector
from fastadv.detection.drift import Drift, DriftWindow
from fastadv.detection.examples import Examples
from fastadv.detection.explain import Explanation, explain
from fastadv.detection.fitting import FitConfig, FitRecord, Fitted, fit_network
from fastadv.detection.gallery import enrol
from fastadv.detection.guard import Guard, Verdicts
from fastadv.detection.knn import KnnScore, fit_knn, load_knn
from fastadv.detection.measures import AreaUnderCurve, auc, auc_interval
from fastadv.detection.medoids import medoids
from fastadv.detection.moments import Moments, Projection, whitening
from fastadv.detection.neighbours import Found, Neighbours
from fastadv.detection.networks import Architecture, Network, side_by_side
from fastadv.detection.one_call import fit
from fastadv.detection.representatives import CentroidSums, Representatives, centroids, load_representatives
from fastadv.detection.taps import LayerTap, Tapped
from fastadv.detection.tensor_file import DetectionFileError
from fastadv.detection.trajectory import Trajectory
from fastadv.detection.yardsticks import DeepKnn, LocalDimension, Mahalanobis

__all__ = [
    "Architecture",
    "AreaUnderCurve",
    "CentroidSums",
    "DeepKnn",
    "DetectionFileError",
    "Detector",
    "Drift",
    "DriftWindow",
    "Examples",
    "ExpectedRate",
    "Explanation",
    "FitConfig",
    "FitRecord",
    "Fitted",
    "Found",
    "Guard",
    "KnnScore",
    "LayerTap",
    "LocalDimension",
    "Mahalanobis",
    "Moments",
    "Neighbours",
    "Network",
    "Projection",
    "Representatives",
    "Tapped",
    "Thresholds",
    "Trajectory",
    "Verdicts",
    "auc",
    "auc_interval",
    "calibrate",
    "centroids",
    "enrol",
    "expected_rate",
    "explain",
    "fit",
    "fit_knn",
    "fit_network",
    "images_for",
    "load_detector",
    "load_knn",
    "load_representatives",
    "medoids",
    "side_by_side",
    "whitening",
]
