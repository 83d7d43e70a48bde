"""What the papers found about detectors, checked one by one against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastadv.attacks import CATALOG
from fastadv.studies.detection.fit import Configuration
from fastadv.studies.detection.measure import AGGREGATE, ERRORS, KnnRow, Measured, mean

_AIM_TARGETED, _AIM_UNSEEN = 0.95, 0.9


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One finding.

    Attributes:
        claim: What a paper says.
        holds: Whether it came out so; None where what it needs was not run.
        numbers: What was measured.
    """

    claim: str
    holds: bool | None
    numbers: str


def trajectory_directions(
    measured: Sequence[Measured],
    macro: Mapping[tuple[str, str], float],
    configurations: Sequence[Configuration],
    best: str,
) -> tuple[Direction, ...]:
    """Those of Massoli et al. on the trajectory detectors, and the aims of this study.

    Args:
        measured: Of an evaluation.
        macro: Mean AUCs by detector and kind.
        configurations: The trajectory detectors.
        best: Label of the one that validated best.
    """
    labels = {c.label for c in configurations}
    whole = [row for row in measured if not row.variant and row.detector in labels]
    seen = [row for row in whole if row.seen]
    own = macro.get((best, "targeted"))
    highest = max((macro[key] for key in macro if key[1] == "targeted" and key[0] in labels), default=0.0)
    return (
        _targeted_are_easier(seen),
        *(_cw_is_hardest(seen, targeted) for targeted in (True, False)),
        _lstm_on_untargeted(macro, configurations),
        Direction(
            claim=f"aim: a targeted macro AUC of at least {_AIM_TARGETED} by the detector that validated best",
            holds=None if own is None else own >= _AIM_TARGETED,
            numbers="" if own is None else f"{own:.3f}; the highest of all detectors {highest:.3f}",
        ),
        _finds_unseen([row for row in whole if not row.seen and row.targeted and row.detector == best]),
    )


def _targeted_are_easier(seen: Sequence[Measured]) -> Direction:
    both = {row.family for row in seen if row.targeted} & {row.family for row in seen if not row.targeted}
    areas = {
        targeted: mean([row.area.value for row in seen if row.family in both and row.targeted is targeted])
        for targeted in (True, False)
    }
    return Direction(
        claim="targeted attacks are easier to detect than untargeted ones",
        holds=areas[True] > areas[False] if both else None,
        numbers=f"mean AUC {areas[True]:.3f} against {areas[False]:.3f}" if both else "",
    )


def _cw_is_hardest(seen: Sequence[Measured], targeted: bool) -> Direction:
    rows = [row for row in seen if row.targeted is targeted]
    families = list(dict.fromkeys(row.family for row in rows))
    means = {name: mean([row.area.value for row in rows if row.family == name]) for name in families}
    cw = [value for name, value in means.items() if name.startswith("cw")]
    others = [value for name, value in means.items() if not name.startswith("cw")]
    known = bool(cw and others)
    return Direction(
        claim=f"C&W is the hardest to detect, {'targeted' if targeted else 'untargeted'}",
        holds=max(cw) < min(others) if known else None,
        numbers=", ".join(f"{name} {value:.3f}" for name, value in means.items()) if known else "",
    )


def _lstm_on_untargeted(macro: Mapping[tuple[str, str], float], configurations: Sequence[Configuration]) -> Direction:
    def of(network: str) -> list[float]:
        labels = [c.label for c in configurations if c.network == network]
        return [macro[label, "untargeted"] for label in labels if (label, "untargeted") in macro]

    lstm, mlp = of("lstm"), of("mlp")
    known = bool(lstm and mlp)
    return Direction(
        claim="the LSTM is at least as good as the MLP on untargeted attacks",
        holds=mean(lstm) >= mean(mlp) if known else None,
        numbers=f"mean macro AUC {mean(lstm):.3f} against {mean(mlp):.3f}" if known else "",
    )


def _finds_unseen(unseen: Sequence[Measured]) -> Direction:
    rows = [row for row in unseen if row.family not in CATALOG or CATALOG[row.family].level != "logits"]
    return Direction(
        claim="fitted on classifier attacks, the best detector finds targeted deep-feature attacks "
        f"(aim: AUC at least {_AIM_UNSEEN})",
        holds=all(row.area.value >= _AIM_UNSEEN for row in rows) if rows else None,
        numbers=", ".join(f"{row.family} {row.area.value:.3f}" for row in rows),
    )


def knn_directions(rows: Sequence[KnnRow]) -> tuple[Direction, ...]:
    """Those of Carrara et al. on the kNN score."""

    def average(processing: str, column: str) -> float:
        return mean([row.accuracy[column] for row in rows if row.processing == processing and column in row.accuracy])

    order = ("pca", "l2", "none")
    means = [average(processing, AGGREGATE) for processing in order] if rows else []
    shown = ", ".join(f"{name} {value:.3f}" for name, value in zip(order, means, strict=False))
    with_errors = [row for row in rows if ERRORS in row.accuracy]
    attacked = mean([row.accuracy[AGGREGATE] for row in with_errors])
    wrong = mean([row.accuracy[ERRORS] for row in with_errors])
    return (
        Direction(
            claim="kNN score: PCA and whitening are better than L2, and L2 than none",
            holds=means[0] > means[1] > means[2] if means else None,
            numbers=f"mean accuracy at the EER: {shown}" if means else "",
        ),
        Direction(
            claim="kNN score: adversarial images are easier to refuse than natural errors",
            holds=attacked > wrong if with_errors else None,
            numbers=f"mean accuracy at the EER {attacked:.3f} against {wrong:.3f}" if with_errors else "",
        ),
    )
