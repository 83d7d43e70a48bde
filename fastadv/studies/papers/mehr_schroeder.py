"""Mehr and Schroeder, "Six Pixels to Kevin Bacon": tables 1 to 3, figures 3 to 5, and its comparison of the goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastadv.core.estimates import Estimate, mean_or_none
from fastadv.studies.defences.plan import NONE
from fastadv.studies.papers import mehr_schroeder_checks as checks
from fastadv.studies.papers.defending import GOALS, DefencesOnPairs
from fastadv.studies.papers.mehr_schroeder_checks import BLACK_BOX, PAIRS, THRESHOLDS, on_pairs
from fastadv.studies.papers.mehr_schroeder_printed import (
    CLEAN,
    DENOISER,
    LONGER,
    MEAN,
    NOISE,
    OWN,
    RATIOS,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    WHITE,
    both,
)
from fastadv.studies.papers.recipe import (
    Cell,
    Claim,
    Figure,
    PaperTable,
    Pictures,
    Results,
    Setup,
    StudyPart,
    StudyRecipe,
    Trace,
    numbered,
)
from fastadv.studies.papers.traces import histogram

_ATTACKS = (*zip(WHITE, ("minimal-fgsm", "deepfool"), strict=True),)
_ATTACKS += (*zip(NOISE, ("noise-uniform", "noise-gaussian"), strict=True),)
_COSINES = (0.1, 0.2, 0.3, 0.36, 0.4, 0.5)
_PROTOCOL = (
    "All attacks and decisions are at one threshold, that of the equal error rate on many clean pairs; the paper does "
    "not give FaceNet's. Its shares are of 26 pairs of one person (Anon.) and 24 of two people (Impers.).",
    "The paper's pair classifier is piecewise linear in the distance of the embeddings: FGSM and noise move on it as "
    "on the verifier's score. DeepFool linearises the cosine here.",
)


def _part(setup: Setup, name: str, **more: Any) -> tuple[StudyPart, ...]:
    sizes = {"pairs": setup.at(20, 64, 50), "verified": setup.at(100, 600, None)}
    return (DefencesOnPairs(name=name, **{"attacks": _ATTACKS, **sizes, **more}),)


def _pairs_part(setup: Setup) -> tuple[StudyPart, ...]:
    return _part(setup, PAIRS, defences=((MEAN, "mean:3"),), threats=("zero", "perfect"), pictures=True)


def _black_box_part(setup: Setup) -> tuple[StudyPart, ...]:
    defences = ((MEAN, "mean:3"), (DENOISER, "noise2clean"))
    return _part(setup, BLACK_BOX, defences=defences, pairs=setup.at(20, 32, 50), black_box=True)


def _sweep_part(setup: Setup) -> tuple[StudyPart, ...]:
    cosines = setup.at(_COSINES[::2], _COSINES, _COSINES)
    return _part(setup, THRESHOLDS, attacks=_ATTACKS[:2], pairs=setup.at(20, 40, 50), sweep=cosines)


def _table_1(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for attack, _ in _ATTACKS:
        own = [on_pairs(found, attack, goal) for goal in GOALS]
        shares = [each.success(below) for below in (float("inf"), 5.0, 1.0) for each in own]
        rows[attack] = (*shares, *(each.length() for each in own))
    return PaperTable(columns=TABLE_1.columns, rows=rows)


def _table_2(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for attack, _ in _ATTACKS:
        zero, perfect = (
            [on_pairs(found, attack, goal, defence=MEAN, threat=threat) for goal in GOALS]
            for threat in ("zero", "perfect")
        )
        unaware = (*(each.success() for each in zero), *(each.defended_length() for each in zero))
        rows[attack] = (*unaware, *(each.success() for each in perfect), *(each.length() for each in perfect))
    return PaperTable(columns=TABLE_2.columns, rows=rows)


def _table_3(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for row in TABLE_3.rows:
        attack = None if row == CLEAN else row
        cells = (checks.confidences(found, d, attack, goal)[0] for d in (NONE, MEAN, DENOISER) for goal in GOALS)
        rows[row] = tuple(map(mean_or_none, cells))
    return PaperTable(columns=TABLE_3.columns, rows=rows, percent=True)


def _filtered_table(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for noise in NOISE:
        behind = on_pairs(found, noise, GOALS[0], defence=MEAN)
        rows[noise] = (mean_or_none(behind.l2[behind.generated]), behind.defended_length())
    return PaperTable(columns=("mean L2, attacked", "mean L2, after the mean filter"), rows=rows)


def _lengths_table(found: Results) -> PaperTable:
    rows = {attack: tuple(on_pairs(found, attack, goal).length() for goal in GOALS) for attack, _ in _ATTACKS}
    return PaperTable(columns=both("mean L2"), rows=rows)


def _longer_table(found: Results) -> PaperTable:
    rows = {row: (checks.longer(of)(found),) for row, of in zip(LONGER.rows, (WHITE, NOISE), strict=True)}
    return PaperTable(columns=LONGER.columns, rows=rows, percent=True)


def _length_figures(found: Results) -> tuple[Figure, ...]:
    made = []
    for attack, _ in _ATTACKS:
        bare, through = on_pairs(found, attack), on_pairs(found, attack, defence=MEAN, threat="perfect")
        lengths = {"no defence": bare.l2[bare.gained], "mean filter, perfect knowledge": through.l2[through.gained]}
        lengths = {name: values for name, values in lengths.items() if len(values)}
        if lengths:
            span = (0.0, max(float(values.max()) for values in lengths.values()))
            traces = tuple(histogram(name, values, span, bins=12) for name, values in lengths.items())
            made.append(Figure(title=attack, traces=traces, x_name="L2 norm", y_name="share of the successes"))
    return tuple(made)


def _pictures(title: str, captions: tuple[str, ...], note: str = "") -> Callable[[Results], tuple[Pictures, ...]]:
    def made(found: Results) -> tuple[Pictures, ...]:
        files = dict(found[PAIRS]["pictures"])
        return (Pictures(title=title, files=tuple((name, files[name]) for name in captions), note=note),)

    return made


def _sweep_cells(found: Results, attack: str) -> list[Mapping[str, Any]]:
    return [cell for cell in found[THRESHOLDS]["sweep"] if cell["attack"] == attack]


def _sweep_table(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for cells in zip(*(_sweep_cells(found, attack) for attack in WHITE), strict=True):
        numbers: list[Cell] = []
        for cell in cells:
            ratio = None if cell["ratio"] is None else checks.ratio_of(cell["ratio"])
            numbers += [cell["evasion"]["mean_l2"], cell["impersonation"]["mean_l2"], ratio]
        rows[f"cosine {cells[0]['threshold']:.2f}"] = tuple(numbers)
    rows[OWN] = tuple(number for attack in WHITE for number in checks.at_eer(found, attack))
    return PaperTable(columns=RATIOS.columns, rows=rows)


def _sweep_figure(found: Results) -> tuple[Figure, ...]:
    traces = []
    for attack in WHITE:
        points = [(cell["threshold"], cell["ratio"]["ratio"]) for cell in _sweep_cells(found, attack) if cell["ratio"]]
        if points:
            x, y = zip(*points, strict=True)
            traces.append(Trace(label=attack, x=x, y=y))
    title, y_name = "Cost of impersonation", "mean L2, impersonation over anonymisation"
    figure = Figure(title=title, traces=tuple(traces), x_name="threshold, cosine", y_name=y_name, level=("equal", 1.0))
    return (figure,) if traces else ()


_recipe = partial(numbered, "mehr", "Mehr and Schroeder", parts=_pairs_part, notes=_PROTOCOL)


def _claim(statement: str, check: Callable[[Results], Estimate | None]) -> Claim:
    return Claim(statement=statement, check=check)


_NOISE_IS_LONGER = _claim("noise needs ten times DeepFool's norm for anonymisation", checks.noise_is_longer)
_FILTERED = _claim("the filter brings noisy images nearer to the originals", checks.filter_shortens_noise)

RECIPES = (
    _recipe(
        "table 1",
        "5",
        "Success of four attacks on the bare verifier, within norms, and the mean norm of the successes",
        _table_1,
        printed=TABLE_1,
        claims=(
            _NOISE_IS_LONGER,
            _claim("noise impersonates less often than DeepFool", checks.noise_hardly_impersonates),
            _claim(
                "impersonation needs larger norms than anonymisation (FGSM, DeepFool)", checks.impersonation_costs_more
            ),
        ),
        notes=(*_PROTOCOL, "Which goal needs the larger norm is a matter of the threshold: see mehr-thresholds."),
    ),
    _recipe(
        "table 2",
        "5",
        "A mean filter against attackers who do not know it and who do",
        _table_2,
        printed=TABLE_2,
        claims=(
            _claim("the filter stops most white-box attacks made without knowing it", checks.filter_stops_most),
            _claim(
                "a white-box attack through the filter succeeds as often as without it (within ten points)",
                checks.knowing_restores,
            ),
            _FILTERED,
        ),
        notes=(
            *_PROTOCOL,
            "The L2 norm after the defence is the distance from the original to the defended attacked image, of the "
            "images that succeed on the bare verifier.",
        ),
    ),
    _recipe(
        "table 3",
        "5",
        "Mean confidence of a black box in the right answer",
        _table_3,
        printed=TABLE_3,
        parts=_black_box_part,
        claims=(
            _claim("every attack lowers the confidence of the black box", checks.lowers),
            _claim("both defences give back confidence under noise", checks.defences_give_back),
            _claim("neither defence gives back half of what white-box impersonation takes", checks.impersonation_stays),
        ),
        together=True,
        networks=2,
        notes=(
            "The images are generated on the first network; the second one takes the place of the commercial service. "
            "Further ones are not used. Its confidence is the probability of the paper's pair classifier at its own "
            "equal error rate: compare what attacks and defences change, not the levels.",
            "As in the paper, attacked pairs are those whose attack succeeds on the first network.",
        ),
    ),
    _recipe(
        "figure 3",
        "4",
        "An image under Gaussian noise, corrected by both defences",
        _filtered_table,
        pictures=_pictures(
            "An image, attacked with Gaussian noise, and corrected",
            ("first image", "Gaussian", "Gaussian: mean filter", "Gaussian: Noise2Clean"),
        ),
        claims=(_FILTERED,),
    ),
    _recipe(
        "figure 4",
        "6",
        "A pair, its attacked images, and their changes",
        _lengths_table,
        pictures=_pictures(
            "A pair and its four attacks",
            (
                "second image, fixed",
                "first image",
                *(name for attack, _ in _ATTACKS for name in (attack, f"{attack}: change, scaled")),
            ),
            note="Each change is scaled by its own largest value; grey is no change.",
        ),
        claims=(_NOISE_IS_LONGER,),
    ),
    _recipe(
        "figure 5",
        "6",
        "Distribution of the L2 norm, without the mean filter and through it",
        _longer_table,
        printed=LONGER,
        figures=_length_figures,
        claims=(
            _claim("white-box attacks are longer through the filter", checks.longer(WHITE)),
            _claim("black-box attacks are longer through the filter", checks.longer(NOISE)),
        ),
        notes=(
            *_PROTOCOL,
            "The two numbers are in the text, which does not say how they are averaged. Ours: the mean over the pairs "
            "on which both attacks succeed of one norm over the other, minus 1, then over the attacks.",
        ),
    ),
    StudyRecipe(
        name="mehr-thresholds",
        source="Mehr and Schroeder, table 1, section 6",
        title="Impersonation against anonymisation, as a function of the threshold",
        parts=_sweep_part,
        table=_sweep_table,
        printed=RATIOS,
        claims=(
            _claim(
                "impersonation needs larger norms than anonymisation at the threshold of the equal error rate",
                checks.impersonation_is_longer,
            ),
        ),
        figures=_sweep_figure,
        notes=(
            "The paper has one threshold, and finds that impersonation takes about twice the norm. The ratio is a "
            "function of the threshold: near to the scores of two people impersonation is the shorter way, near to "
            "those of one person anonymisation is. The finding is reproduced where the curve is above 1.",
        ),
    ),
)
