"""The ROC of a verification and of an open-set identification, as a file."""

from __future__ import annotations

from pathlib import Path

from fastadv.report.roc import Curve, far_axis, roc_figure, save_figure
from fastadv.studies.identify import Identification
from fastadv.studies.verify import Verification

ROC = "roc.svg"
IDENTIFICATION = "identification.svg"


def draw_verification(result: Verification, path: Path, *, title: str = "") -> Path:
    """The ROC of the clean pairs and, dashed, of the attacked ones; SVG or PNG by the path's ending.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    curves = [Curve.of(f"clean, EER {result.clean.eer:.2%}", result.scores, result.same)]
    if result.attacked_scores is not None and result.attacked is not None and result.attacked.eer is not None:
        label = f"attacked, EER {result.attacked.eer:.2%}"
        curves.append(Curve.of(label, result.attacked_scores, result.same, after=True))
    log, lowest = far_axis(int((~result.same).sum()))
    return save_figure(roc_figure(curves, log_far=log, lowest_far=lowest, title=title), path)


def draw_identification(result: Identification, path: Path, *, title: str = "") -> Path | None:
    """TPIR over FPIR, clean and, dashed, under attack; SVG or PNG by the path's ending. None without unmated probes.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    if not result.curves:
        return None
    labels = (f"clean, rank 1 {result.clean.rank1:.2%}", "attacked")
    curves = [
        Curve(label=label, far=fpir, tar=tpir, after=k > 0)
        for k, (label, (fpir, tpir)) in enumerate(zip(labels, result.curves, strict=False))
    ]
    log, lowest = far_axis(result.clean.unmated)
    rates = ("false positive identification rate", "true positive identification rate")
    figure = roc_figure(curves, log_far=log, lowest_far=lowest, title=title, labels=rates, chance=False)
    return save_figure(figure, path)
