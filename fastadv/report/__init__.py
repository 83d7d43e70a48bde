"""Figures, from results only; they need matplotlib (`pip install 'fastadv[plot]'`)."""

from fastadv.report.roc import Curve, roc_figure, save_figure

__all__ = ["Curve", "roc_figure", "save_figure"]
