"""The ROC of a verification as a figure."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, MissingPackageError
from fastadv.core.files import write_atomically
from fastadv.core.statistics import roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dark enough on white, and apart for the colour-blind (after Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#7A4B94", "#444444", "#B8860B")
_GREY = "#8A8A8A"
_DPI = 160
_LOG_FROM = 10  # trials below which a logarithmic axis has less than a decade to show
_LOWEST = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One ROC to draw.

    Attributes:
        label: Its name in the legend, for example "clean, EER 0.7%".
        far: (K,) false accept rates in [0, 1], not decreasing.
        tar: (K,) true accept rates in [0, 1].
        after: Drawn dashed: the same model under attack.
    """

    label: str
    far: ArrayLike
    tar: ArrayLike
    after: bool = False

    def __post_init__(self) -> None:
        far, tar = np.asarray(self.far, np.float64), np.asarray(self.tar, np.float64)
        if far.ndim != 1 or far.shape != tar.shape or not len(far):
            raise ArgumentError(f"far, tar: expected two (K,) arrays, got {far.shape} and {tar.shape}")
        for name, values in (("far", far), ("tar", tar)):
            if not ((values >= 0) & (values <= 1)).all():
                raise ArgumentError(f"{name}: expected rates from 0 to 1, got {values.min():g} to {values.max():g}")
        if (np.diff(far) < 0).any():
            raise ArgumentError(f"far: expected rates that do not decrease, got {brief(self.far)}")

    @staticmethod
    def of(label: str, scores: ArrayLike, same: ArrayLike, *, after: bool = False) -> Curve:
        """The ROC of scores, higher for the same person; raises as ``roc`` does."""
        found = roc(scores, same)
        return Curve(label=label, far=found.far, tar=found.tar, after=after)


def roc_figure(
    curves: Sequence[Curve],
    *,
    log_far: bool = True,
    lowest_far: float = 1e-4,
    title: str = "",
    labels: tuple[str, str] = ("false accept rate", "true accept rate"),
    chance: bool = True,
) -> Figure:
    """Draws ROC curves: the true accept rate over the false accept rate.

    The figure is free-standing: neither pyplot nor its global state is touched.

    Args:
        curves: What to draw, at least one; a curve marked `after` has the colour of the one before it.
        log_far: A logarithmic axis of the false accept rate, from `lowest_far` to 1; else from 0 to 1.
        lowest_far: Left end of the logarithmic axis, in (0, 1). Below 1 / (number of negative pairs) a
            curve says nothing.
        title: Above the axes; none when empty.
        labels: What the two rates are called.
        chance: Draw what guessing would give.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: No curves, or `lowest_far` outside (0, 1).
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    if not curves:
        raise ArgumentError("curves: expected at least one, got none")
    if not 0 < lowest_far < 1:
        raise ArgumentError(f"lowest_far: expected a rate between 0 and 1, got {lowest_far}")
    figure = _new_figure()
    axes = figure.add_subplot()
    colour = -1
    for curve in curves:
        colour += 0 if curve.after and colour >= 0 else 1
        axes.plot(
            *steps(curve, lowest_far if log_far else 0.0),
            color=_COLOURS[colour % len(_COLOURS)],
            linewidth=1.3,
            linestyle=(0, (4, 2)) if curve.after else "-",
            label=curve.label,
        )
    if chance:
        guess = np.geomspace(lowest_far, 1, 200) if log_far else np.array([0.0, 1.0])
        axes.plot(guess, guess, color=_GREY, linewidth=0.7, linestyle=(0, (1, 3)), label="chance")
    _dress(axes, log_far=log_far, lowest_far=lowest_far, title=title, labels=labels)
    return figure


def far_axis(trials: int) -> tuple[bool, float]:
    """Whether an axis of rates is logarithmic, and its left end: never below what so many trials can show.

    Args:
        trials: Negative pairs, or faces of people who are not enrolled; at least 1.
    """
    return trials >= _LOG_FROM, max(_LOWEST, min(0.5, 1 / trials))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as .svg or .png (by the extension); whole or absent, the same figure the same bytes.

    Raises:
        ValueError: Another extension.
        OSError: With the file's name.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    path = Path(path)
    buffer = io.BytesIO()
    if path.suffix.lower() == ".png":
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    elif path.suffix.lower() == ".svg":
        with rc_context({"svg.hashsalt": "fastadv"}):  # the identifiers in the file, otherwise random
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    else:
        raise ArgumentError(f"path: expected a file ending in .svg or .png, got {path.name!r}")
    write_atomically(path, buffer.getvalue())
    return path


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "figures: expected the package matplotlib, got no such package; pip install 'fastadv[report]'"
        ) from error
    return Figure(figsize=(7.2, 3.9), dpi=_DPI, layout="constrained", facecolor="white")


def steps(curve: Curve, lowest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve from the left end of the axis: there it has the best rate reached up to that end."""
    far, tar = np.asarray(curve.far, np.float64), np.asarray(curve.tar, np.float64)
    left = far <= lowest
    start = float(tar[left].max()) if left.any() else float(tar[0])
    return np.concatenate([[lowest], far[~left]]), np.concatenate([[start], tar[~left]])


def _dress(axes: Any, *, log_far: bool, lowest_far: float, title: str, labels: tuple[str, str]) -> None:
    if log_far:
        axes.set_xscale("log")
        axes.set_xlim(lowest_far, 1)
    else:
        axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(True, which="major", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color="#555555", linewidth=0.7)
    axes.tick_params(which="both", color="#555555", width=0.6, labelsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, handlelength=2.2)
    if title:
        axes.set_title(title, fontsize=10.5, loc="left")
