"""The fused operations: one public function each, four implementations behind it."""

from fastadv.ops import philox
from fastadv.ops.momentum_step import momentum_step_, momentum_workspace
from fastadv.ops.sign_step import sign_step_

__all__ = ["momentum_step_", "momentum_workspace", "philox", "sign_step_"]
