""" "Adversarial attack as a defence for face recognition", 2021: tables 1 to 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastadv.core.estimates import Estimate, least_or_none, minus, share_or_none
from fastadv.studies.defences.plan import NONE
from fastadv.studies.papers.defending import GOALS, DefencesOnPairs, Flags, attacked, paired, right_clean
from fastadv.studies.papers.recipe import Cell, Claim, PaperTable, Results, Setup, StudyPart, StudyRecipe, numbered

_UNDEFENDED, _DEFENDED = "defence-attacks", "defence-pairs"
_FAMILIES = {"FGSM": "ffm", "PGD": "pgd", "C&W": "pgd-cw"}
_LEVELS = (2, 4, 8)
_LEVEL = 4  # of the defences; the paper's text on tables 2 to 4 names none
_CLEAN = "none"
_COLUMNS = ("all pairs", "positive pairs", "negative pairs")
_SUBSETS = (None, *GOALS)


def _text(family: str, level: int, setup: Setup) -> str:
    steps = "" if family == "FGSM" else f":{setup.at(4, 10, 40)}"
    return f"{_FAMILIES[family]}{steps}@{level}/255"


def _part(setup: Setup, name: str, **more: Any) -> tuple[StudyPart, ...]:
    return (DefencesOnPairs(name=name, pairs=setup.at(20, 40, None), verified=setup.at(100, 600, None), **more),)


def _attacked_parts(setup: Setup) -> tuple[StudyPart, ...]:
    attacks = tuple((_row(family, level), _text(family, level, setup)) for family in _FAMILIES for level in _LEVELS)
    return _part(setup, _UNDEFENDED, attacks=attacks)


def _defended_parts(setup: Setup) -> tuple[StudyPart, ...]:
    texts = {family: _text(family, _LEVEL, setup) for family in _FAMILIES}
    defences = tuple(
        (_defence(family, known=known), f"pair({text}){':gallery' if known else ''}")
        for family, text in texts.items()
        for known in (True, False)
    )
    return _part(setup, _DEFENDED, attacks=tuple(texts.items()), defences=defences)


def _row(family: str, level: int) -> str:
    return f"{family}, ε = {level}"


def _defence(family: str, *, known: bool) -> str:
    """The gallery's image alone is attacked where it is known that the query was; else both are."""
    return f"{family} on the gallery" if known else f"{family} on both"


def _query_row(attack: str, family: str, *, known: bool) -> str:
    """``"PGD vs PGD"``, ``"FGSM, then PGD vs PGD"``."""
    return f"{attack}{'' if known else f', then {family}'} vs {family}"


def _right(found: Results, part: str, attack: str, goal: str | None = None, *, defence: str = NONE) -> Flags:
    """Which pairs are decided rightly; without an attack the clean ones."""
    if attack == _CLEAN:
        return right_clean(found[part], defence, goal)
    return ~attacked(found[part], attack, goal, defence=defence).hits


def _cells(found: Results, part: str, attack: str, *, defence: str = NONE) -> tuple[Cell, ...]:
    return tuple(share_or_none(_right(found, part, attack, goal, defence=defence)) for goal in _SUBSETS)


def _attacked_table(found: Results) -> PaperTable:
    rows = {"no attack": _cells(found, _UNDEFENDED, _CLEAN)}
    rows |= {_row(f, level): _cells(found, _UNDEFENDED, _row(f, level)) for f in _FAMILIES for level in _LEVELS}
    return PaperTable(columns=_COLUMNS, rows=rows, percent=True)


def _defended_table(family: str) -> Callable[[Results], PaperTable]:
    def table(found: Results) -> PaperTable:
        rows = {}
        for attack, known in ((family, True), *((each, False) for each in _FAMILIES), (_CLEAN, True), (_CLEAN, False)):
            cells = _cells(found, _DEFENDED, attack, defence=_defence(family, known=known))
            rows[_query_row("no attack" if attack == _CLEAN else attack, family, known=known)] = cells
        return PaperTable(columns=_COLUMNS, rows=rows, percent=True)

    return table


def _printed(rows: Mapping[str, float | None]) -> PaperTable:
    """The accuracies of all pairs, which stand in the text."""
    return PaperTable.of_percent(_COLUMNS, {name: (value, None, None) for name, value in rows.items()})


def _printed_defence(family: str, known: float | None, fgsm: float | None = None) -> PaperTable:
    rows = {_query_row(family, family, known=True): known}
    rows |= {_query_row(each, family, known=False): fgsm if each == "FGSM" else None for each in _FAMILIES}
    return _printed(rows)


def _fgsm_disrupts(found: Results) -> Estimate | None:
    """One half minus the accuracy."""
    return _less(share_or_none(_right(found, _UNDEFENDED, _row("FGSM", 4))), 0.5)


def _less(found: Estimate | None, most: float) -> Estimate | None:
    return None if found is None else -(found - most)


def _iterative_disrupt_more(found: Results) -> Estimate | None:
    """The accuracy under FGSM minus that under PGD and under C&W."""
    fgsm = _right(found, _UNDEFENDED, _row("FGSM", 4))
    return least_or_none(paired(fgsm, _right(found, _UNDEFENDED, _row(family, 4))) for family in ("PGD", "C&W"))


def _known_is_repaired(family: str) -> Callable[[Results], Estimate | None]:
    """The accuracy with the defence minus that without, under the attack that the defence knows of."""

    def check(found: Results) -> Estimate | None:
        behind = _right(found, _DEFENDED, family, defence=_defence(family, known=True))
        return paired(behind, _right(found, _DEFENDED, family))

    return check


def _unknown_accuracies(family: str, found: Results) -> list[Flags]:
    defence = _defence(family, known=False)
    return [_right(found, _DEFENDED, attack, defence=defence) for attack in _FAMILIES]


def _unknown_reaches(family: str) -> Callable[[Results], Estimate | None]:
    """The least accuracy under an attack that the defence does not know, minus 80 %."""

    def check(found: Results) -> Estimate | None:
        return least_or_none(minus(share_or_none(flags), 0.8) for flags in _unknown_accuracies(family, found))

    return check


def _fails(family: str) -> Callable[[Results], Estimate | None]:
    """One half minus the highest accuracy."""

    def check(found: Results) -> Estimate | None:
        known = _right(found, _DEFENDED, family, defence=_defence(family, known=True))
        return least_or_none(_less(share_or_none(flags), 0.5) for flags in (known, *_unknown_accuracies(family, found)))

    return check


def _clean_is_kept(family: str) -> Callable[[Results], Estimate | None]:
    """The accuracy on clean pairs with the defence minus that without, plus five points."""

    def check(found: Results) -> Estimate | None:
        behind = _right(found, _DEFENDED, _CLEAN, defence=_defence(family, known=False))
        return minus(paired(behind, _right(found, _DEFENDED, _CLEAN)), -0.05)

    return check


_TABLE_1 = {"no attack": 99.3, "FGSM, ε = 4": 7.5, "FGSM, ε = 8": 2.9, "PGD, ε = 4": 0.0, "C&W, ε = 4": 0.0}
_NOTES = (
    "The printed numbers are those that the paper's text states: its tables were not available.",
    "Accuracy is at one threshold, that of the equal error rate on many clean pairs. FGSM, PGD and C&W move a pair's "
    "embeddings apart or together; C&W ends at the margin of the decision, inside the ball.",
    "The paper's network joins the embeddings of an image and of its mirror image, 1,024 numbers: 'mirror = true' in a "
    "network's TOML description.",
)
_USELESS = (
    "The defence attacks towards the opposite of the system's own decision, so that it inverts decisions: it is right "
    "where an attack had inverted them before, and wrong on clean pairs. The paper's number may be met, and the "
    "defence is useless: an attacker who leaves the images as they are defeats it. The last two rows are the clean "
    "pairs, which the paper does not report.",
    f"The radius of the defence is {_LEVEL}/255; the paper's text does not name it.",
)


_recipe = partial(numbered, "defence", '"Adversarial attack as a defence for face recognition", 2021')


def _defence_recipe(number: int, family: str, printed: PaperTable, *claims: Claim) -> StudyRecipe:
    return _recipe(
        f"table {number}",
        "4",
        f"Verification accuracy with {family} as the defence, query against gallery",
        _defended_table(family),
        parts=_defended_parts,
        printed=printed,
        claims=(
            *claims,
            Claim(
                statement=f"{family} as the defence has no cost on clean pairs (at most five points)",
                check=_clean_is_kept(family),
            ),
        ),
        notes=(*_NOTES, *_USELESS),
    )


def _works(family: str) -> tuple[Claim, ...]:
    return (
        Claim(
            statement=f"{family} on the gallery raises the accuracy under {family}, which is known",
            check=_known_is_repaired(family),
        ),
        Claim(
            statement=f"{family} on both images raises the accuracy above 80 % under every attack, unknown",
            check=_unknown_reaches(family),
        ),
    )


RECIPES = (
    _recipe(
        "table 1",
        "4",
        "Verification accuracy after attacks on the query",
        _attacked_table,
        parts=_attacked_parts,
        printed=_printed(_TABLE_1),
        claims=(
            Claim(statement="FGSM within 4/255 takes the accuracy below one half", check=_fgsm_disrupts),
            Claim(
                statement="PGD and C&W take the accuracy lower than FGSM within 4/255", check=_iterative_disrupt_more
            ),
        ),
        notes=_NOTES,
    ),
    _defence_recipe(2, "PGD", _printed_defence("PGD", 71.4, 80.6), *_works("PGD")),
    _defence_recipe(3, "C&W", _printed_defence("C&W", 72.1), *_works("C&W")),
    _defence_recipe(
        4,
        "FGSM",
        _printed_defence("FGSM", None),
        Claim(statement="FGSM as the defence does not work: the accuracy stays below one half", check=_fails("FGSM")),
    ),
)
