"""Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition"."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fastadv.core.estimates import Estimate
from fastadv.studies.papers import zhong_deng_printed as printed
from fastadv.studies.papers import zhong_deng_verifiers as verifiers
from fastadv.studies.papers.recipe import Claim, Figure, PaperTable, Results, Setup, StudyPart, StudyRecipe, Trace
from fastadv.studies.papers.transfer_parts import Hits, TransferPart

_SOURCE = "Zhong and Deng 2020, {}, section {}"
_LABELS = ("ftgsm", "itgsm", "ffm", "fim")
_METHODS = ("fim", "dfanet-fim", "m-fim", "dfanet-m-fim", "di-m-fim", "dfanet-di-m-fim")
_FEW = ("fim", "m-fim")  # the methods that tables II to IV show after the least number of steps
_BY_STEPS = ("fim", "m-fim", "di-m-fim", "dfanet-di-m-fim")
_ON_THE_WAY = ("fim", "m-fim", "dfanet-fim", "di-m-fim", "dfanet-di-m-fim")
_BEST = "dfanet-di-m-fim"
_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
_FEATURES, _HEADS, _DROP, _ENSEMBLES = (
    "transfer-features",
    "transfer-labels",
    "transfer-drop-rates",
    "transfer-ensembles",
)

_PAIRS = (
    "The pairs show different people, whom no network accepts before the attack. Paper: 10,000 pairs of 100 sources of "
    "MS-Celeb-1M and 100 targets of VGGFace2; here all are of the given faces, and the networks are the given ones.",
    "mean: of the rates from each network to each other one; of the paper, of the printed numbers. Its interval counts "
    "a pair once, whatever number of networks saw it.",
    "Pairs that share an image are no independent trials: the intervals are those of as many pairs as there are "
    "sources or targets, the fewer of the two (fewer still where some are in more pairs than others).",
)
_STEPS = (
    "FIM and M-FIM make 13 steps, min(eps + 4, 1.25 eps), and the others 1,500 (scale small: 64). The paper states 13 "
    "for FIM and 1,500 for DFANet, and no number for M-FIM and DI-M-FIM; more steps leave M-FIM unchanged in its "
    "figure 5.",
)


def _part(setup: Setup, name: str, methods: tuple[str, ...], steps: int, **more: Any) -> TransferPart:
    size = {"pairs": setup.at(6, 48, 10_000), "images": setup.at(8, 48, 101), "fars": (setup.at(0.1, 1e-3, 1e-3),)}
    return TransferPart(name=name, methods=methods, steps=steps, **{**size, **more})


def _features(setup: Setup) -> tuple[StudyPart, ...]:
    at = setup.at((2,), (13, 25, 40), (13, 50, 100, 200, 500, 1000))
    return (_part(setup, _FEATURES, _METHODS, setup.at(4, 64, 1500), at=at),)


def _labels(setup: Setup) -> tuple[StudyPart, ...]:
    return (_part(setup, _HEADS, _LABELS, setup.at(2, 13, 13), heads=setup.at(8, 10, 10)),)


def _drop_rates(setup: Setup) -> tuple[StudyPart, ...]:
    rates = setup.at(_RATES[-1:], _RATES[:-1], _RATES)
    methods = ("di-m-fim", _BEST, *(f"{_BEST},rate={rate}" for rate in rates))
    return (_part(setup, _DROP, methods, setup.at(2, 32, 1500), pairs=setup.at(6, 32, 10_000)),)


def _ensembles(setup: Setup) -> tuple[StudyPart, ...]:
    fars = (*setup.at((0.1,), (), ()), *printed.FARS)
    return (_part(setup, _ENSEMBLES, ("di-m-fim", _BEST), setup.at(2, 48, 1500), fars=fars, ensembles=True),)


def _matrix(part: str, methods: tuple[str, ...], results: Results) -> PaperTable:
    hits = Hits(results[part])
    steps = {m: hits.first(m) if m in _FEW else None for m in methods}
    return PaperTable(
        columns=(printed.MEAN, *(f"{one} → {other}" for one, other in hits.moves)),
        rows={m: (hits.mean(m, steps[m]), *(hits.rate(move, m, steps[m]) for move in hits.moves)) for m in methods},
        percent=True,
    )


def _above(part: str, one: str, other: str, results: Results) -> Estimate:
    """How much one method is above another, each after the steps of its row."""
    hits = Hits(results[part])
    first, second = (hits.first(method) if method in _FEW else None for method in (one, other))
    return hits.above(one, other, (first, second))


def _features_over_labels(results: Results) -> Estimate:
    hits = Hits(results[_HEADS])
    ftgsm, itgsm, ffm, fim = (hits.by_pair(method) for method in _LABELS)
    return hits.bounded((ffm + fim - ftgsm - itgsm) / 2)


def _claim(statement: str, part: str, one: str, other: str) -> Claim:
    return Claim(statement=statement, check=partial(_above, part, one, other))


_STRONGER = (
    _claim("M-FIM transfers better than FIM", _FEATURES, "m-fim", "fim"),
    _claim("DI-M-FIM transfers better than M-FIM", _FEATURES, "di-m-fim", "m-fim"),
    _claim("DFANet improves FIM", _FEATURES, "dfanet-fim", "fim"),
    _claim("DFANet improves M-FIM", _FEATURES, "dfanet-m-fim", "m-fim"),
    _claim("DFANet improves DI-M-FIM", _FEATURES, _BEST, "di-m-fim"),
)


def _rows_of_rates(results: Results) -> dict[str, str]:
    """The methods of figure 4 by the names of their rows."""
    labels = dict.fromkeys(cell["method"] for cell in results[_DROP]["cells"])
    named = {label: f"drop rate {label.partition('=')[2]}" for label in labels if "=" in label}
    return {"drop rate 0 (di-m-fim)": "di-m-fim", "the architecture's own": _BEST} | {v: k for k, v in named.items()}


def _table_of_rates(results: Results) -> PaperTable:
    hits = Hits(results[_DROP])
    surrogates = tuple(dict.fromkeys(one for one, _ in hits.moves))
    return PaperTable(
        columns=(printed.MEAN, *surrogates),
        rows={
            name: (hits.mean(method), *(hits.mean(method, surrogate=one) for one in surrogates))
            for name, method in _rows_of_rates(results).items()
        },
        percent=True,
    )


def _curves_of_rates(results: Results) -> tuple[Figure, ...]:
    hits = Hits(results[_DROP])
    rows = [(0.0, "di-m-fim")]
    rows += [(float(m.partition("=")[2]), m) for m in _rows_of_rates(results).values() if "=" in m]
    rates = tuple(rate for rate, _ in rows)
    traces = tuple(
        Trace(label=one, x=rates, y=tuple(hits.mean(method, surrogate=one).value for _, method in rows))
        for one in dict.fromkeys(one for one, _ in hits.moves)
    )
    title = "Hit rate of DFANet-DI-M-FIM on the other networks, by surrogate"
    return (Figure(title=title, traces=traces, x_name="drop rate", y_name="hit rate"),)


def _too_high(results: Results) -> Estimate:
    return _above(_DROP, _BEST, list(_rows_of_rates(results).values())[-1], results)


def _table_by_steps(results: Results) -> PaperTable:
    hits = Hits(results[_FEATURES])
    steps = hits.cell(hits.moves[0][0], "fim")["steps"]
    return PaperTable(
        columns=tuple(f"{k} steps" for k in steps),
        rows={method: tuple(hits.mean(method, k) for k in steps) for method in _BY_STEPS},
        percent=True,
    )


def _curves_by_steps(results: Results) -> tuple[Figure, ...]:
    hits = Hits(results[_FEATURES])
    steps = hits.cell(hits.moves[0][0], "fim")["steps"]
    traces = tuple(Trace(label=m, x=tuple(steps), y=tuple(hits.mean(m, k).value for k in steps)) for m in _BY_STEPS)
    return (Figure(title="Mean hit rate by steps", traces=traces, x_name="steps", y_name="hit rate", log_x=True),)


def _gain(results: Results, method: str, base: str | None = None) -> Estimate:
    """What more steps add to a method; beyond what they add to another one."""
    hits = Hits(results[_FEATURES])
    gains = [hits.by_pair(m) - hits.by_pair(m, hits.first(m)) for m in (method, base) if m is not None]
    return hits.bounded(gains[0] if base is None else (gains[0] - gains[1]) / 2)


def _below_at_first(results: Results) -> Estimate:
    hits = Hits(results[_FEATURES])
    first = hits.first(_BEST)
    return hits.above("di-m-fim", _BEST, (first, first))


def _table_of_distances(results: Results) -> PaperTable:
    hits = Hits(results[_FEATURES])
    return PaperTable(
        columns=("surrogate", "other networks"),
        rows={m: tuple(hits.unbounded(hits.distances(m, white_box=w)) for w in (True, False)) for m in _ON_THE_WAY},
    )


def _curves_of_distances(results: Results) -> tuple[Figure, ...]:
    hits = Hits(results[_FEATURES])
    figures = []
    for name, moves in (("the surrogate", [(s, s) for s, _ in hits.moves]), ("the other networks", hits.moves)):
        traces = []
        for method in _ON_THE_WAY:
            found = [hits.cell(s, method)["targets"][t]["distance"] for s, t in moves]
            steps = hits.cell(moves[0][0], method)["steps"]
            traces.append(Trace(label=method, x=tuple(steps), y=tuple(np.mean(found, axis=0).tolist())))
        title = f"Mean distance to the target image on {name}"
        figures.append(
            Figure(title=title, traces=tuple(traces), x_name="steps", y_name="distance of unit embeddings", log_x=True)
        )
    return tuple(figures)


def _smaller_gap(results: Results) -> Estimate:
    hits = Hits(results[_FEATURES])
    far, near = (hits.distances("fim", white_box=w) - hits.distances(_BEST, white_box=w) for w in (False, True))
    return hits.unbounded(far - near)


def _nearer(results: Results, method: str, base: str, *, white_box: bool) -> Estimate:
    hits = Hits(results[_FEATURES])
    return hits.unbounded(hits.distances(base, white_box=white_box) - hits.distances(method, white_box=white_box))


def _table_of_ensembles(results: Results) -> PaperTable:
    hits = Hits(results[_ENSEMBLES])
    shown = hits.found["fars"]
    fars = (*printed.FARS[::-1], *(far for far in shown if far not in printed.FARS))
    rows: dict[str, tuple[Estimate | None, ...]] = {}
    for method in ("di-m-fim", _BEST):
        name = f"{method}, {printed.MEAN}"
        rows[name] = tuple(hits.mean(method, far=far) if far in shown else None for far in fars)
    for move in hits.moves:
        for method in ("di-m-fim", _BEST):
            name = f"{method}, {move[0]} → {move[1]}"
            rows[name] = tuple(hits.rate(move, method, far=far) if far in shown else None for far in fars)
    table = PaperTable(columns=tuple(printed.far_name(far) for far in fars), rows=rows, percent=True)
    return table.with_rows_of(printed.TABLE_5)


def _transfer_table(number: int, roman: str, shown: PaperTable, what: str, paper: str) -> StudyRecipe:
    return StudyRecipe(
        name=f"zhong-deng-table-{number}",
        source=_SOURCE.format(f"table {roman}", "IV-C"),
        title=f"Hit rates of FIM, M-FIM and DI-M-FIM, with and without DFANet, between networks of different {what}",
        parts=_features,
        table=partial(_matrix, _FEATURES, _METHODS),
        printed=shown,
        claims=_STRONGER,
        together=True,
        networks=2,
        notes=(*_PAIRS, *_STEPS, paper),
    )


RECIPES: tuple[StudyRecipe, ...] = (
    StudyRecipe(
        name="zhong-deng-table-1",
        source=_SOURCE.format("table I", "IV-B"),
        title="Hit rates of label-level and feature-level attacks",
        parts=_labels,
        table=partial(_matrix, _HEADS, _LABELS),
        printed=printed.TABLE_1,
        claims=(
            Claim(statement="feature-level attacks transfer better than label-level ones", check=_features_over_labels),
            _claim("label-level: several steps transfer better than one", _HEADS, "itgsm", "ftgsm"),
            _claim("feature-level: several steps transfer better than one", _HEADS, "fim", "ffm"),
        ),
        together=True,
        networks=2,
        notes=(
            *_PAIRS,
            "The label-level attacks need a class head. A network without one gets one, trained on the people of the "
            "given faces who have 10 images or more; the paper's networks have those of their training.",
        ),
    ),
    _transfer_table(2, "II", printed.TABLE_2, "training sets", "Paper: ResNet-50, softmax loss."),
    _transfer_table(3, "III", printed.TABLE_3, "losses", "Paper: ResNet-50, trained on WebFace."),
    _transfer_table(4, "IV", printed.TABLE_4, "architectures", "Paper: softmax loss, trained on WebFace."),
    StudyRecipe(
        name="zhong-deng-table-5",
        source=_SOURCE.format("table V", "IV-C"),
        title="Hit rates of an ensemble's attacks on a network that is not in it",
        parts=_ensembles,
        table=_table_of_ensembles,
        printed=printed.TABLE_5,
        claims=(_claim("DFANet improves E-DI-M-FIM", _ENSEMBLES, _BEST, "di-m-fim"),),
        together=True,
        networks=3,
        notes=(
            *_PAIRS,
            "Paper: three ResNet-50 of one training set, with softmax, CosFace and ArcFace, against the commercial "
            "Face++ at its own thresholds. Here: all networks but one against that one, a local black box, at its "
            "thresholds from the given verification pairs. A false accept rate that these cannot show has no number: "
            "LFW's 3,000 negative pairs show 1e-3.",
        ),
    ),
    StudyRecipe(
        name="zhong-deng-figure-4",
        source=_SOURCE.format("figure 4", "IV-D"),
        title="Hit rate of DFANet-DI-M-FIM over the drop rate",
        parts=_drop_rates,
        table=_table_of_rates,
        claims=(
            _claim("the architecture's own drop rate is better than none", _DROP, _BEST, "di-m-fim"),
            Claim(statement="too high a drop rate is worse than the architecture's own", check=_too_high),
        ),
        figures=_curves_of_rates,
        together=True,
        networks=2,
        notes=(*_PAIRS, "The figure's numbers are not printed, and its drop rates are not named: those are ours."),
    ),
    StudyRecipe(
        name="zhong-deng-figure-5",
        source=_SOURCE.format("figure 5", "IV-D"),
        title="Hit rate over the number of steps",
        parts=_features,
        table=_table_by_steps,
        claims=(
            Claim(statement="more steps help DI-M-FIM", check=partial(_gain, method="di-m-fim")),
            Claim(statement="more steps help DFANet-DI-M-FIM", check=partial(_gain, method=_BEST)),
            Claim(
                statement="more steps help DI-M-FIM more than FIM", check=partial(_gain, method="di-m-fim", base="fim")
            ),
            Claim(
                statement="more steps help DFANet-DI-M-FIM more than M-FIM",
                check=partial(_gain, method=_BEST, base="m-fim"),
            ),
            Claim(statement="after few steps DFANet-DI-M-FIM is below DI-M-FIM", check=_below_at_first),
            _claim("after many steps DFANet-DI-M-FIM is above DI-M-FIM", _FEATURES, _BEST, "di-m-fim"),
        ),
        figures=_curves_by_steps,
        together=True,
        networks=2,
        notes=(
            *_PAIRS,
            "The figure's numbers are not printed. Paper: one surrogate, ResNet-50 trained on WebFace; here the mean "
            "over all. An iterate of a long run is the result of the shorter attack.",
        ),
    ),
    StudyRecipe(
        name="zhong-deng-figure-6",
        source=_SOURCE.format("figure 6", "IV-E"),
        title="Distance to the target image on the surrogate and on other networks, by steps",
        parts=_features,
        table=_table_of_distances,
        claims=(
            Claim(
                statement="DFANet-FIM comes nearer than FIM on other networks",
                check=partial(_nearer, method="dfanet-fim", base="fim", white_box=False),
            ),
            Claim(
                statement="DI-M-FIM comes nearer than FIM on other networks",
                check=partial(_nearer, method="di-m-fim", base="fim", white_box=False),
            ),
            Claim(
                statement="on the surrogate DFANet-DI-M-FIM stays farther away than FIM",
                check=partial(_nearer, method="fim", base=_BEST, white_box=True),
            ),
            Claim(
                statement="the gap between surrogate and other networks is smaller for DFANet-DI-M-FIM than for FIM",
                check=_smaller_gap,
            ),
        ),
        figures=_curves_of_distances,
        together=True,
        networks=2,
        notes=(
            *_PAIRS,
            "The figure's numbers are not printed. Paper: 100 of the pairs; here all pairs of tables II to IV, the "
            "mean over all surrogates. The table shows the distances at the end.",
        ),
    ),
    *verifiers.RECIPES,
)
