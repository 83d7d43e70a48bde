"""What Mehr and Schroeder found, as numbers that must be above 0, and what these are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastadv.core.estimates import Estimate, average_or_none, least_or_none, mean_or_none, minus, share_or_none
from fastadv.core.statistics import mean_ratio
from fastadv.studies.defences.plan import NONE
from fastadv.studies.papers.defending import GOALS, Attacked, Flags, Floats, attacked, chosen, paired
from fastadv.studies.papers.mehr_schroeder_printed import DENOISER, MEAN, NOISE, WHITE
from fastadv.studies.papers.recipe import Cell, Results

PAIRS, BLACK_BOX, THRESHOLDS = "mehr-pairs", "mehr-black-box", "mehr-thresholds"
_ANON, _IMPERS = GOALS


def on_pairs(
    found: Results, attack: str, goal: str | None = None, *, defence: str = NONE, threat: str = "zero"
) -> Attacked:
    """An attack of tables 1 and 2."""
    return attacked(found[PAIRS], attack, goal, defence=defence, threat=threat)


def _over_half(flags: Flags) -> Estimate | None:
    """The share of the pairs, minus a half; None of no pairs."""
    return minus(share_or_none(flags), 0.5)


def noise_is_longer(found: Results) -> Estimate | None:
    """The share of pairs on which noise needs ten times DeepFool's norm, or fails, minus a half."""
    own, others = on_pairs(found, "DeepFool", _ANON), [on_pairs(found, noise, _ANON) for noise in NOISE]
    return least_or_none(_over_half((~each.gained | (each.l2 > 10 * own.l2))[own.gained]) for each in others)


def noise_hardly_impersonates(found: Results) -> Estimate | None:
    """DeepFool's success minus that of noise."""
    own = on_pairs(found, "DeepFool", _IMPERS).gained
    return least_or_none(paired(own, on_pairs(found, noise, _IMPERS).gained) for noise in NOISE)


def impersonation_costs_more(found: Results) -> Estimate | None:
    """The mean norm of impersonation minus that of anonymisation."""
    lengths = ([on_pairs(found, attack, goal).length() for goal in GOALS] for attack in WHITE)
    return least_or_none(minus(b, a) for a, b in lengths)


def filter_stops_most(found: Results) -> Estimate | None:
    """One half minus the share of the bare verifier's successes that pass the filter."""
    passed = (on_pairs(found, a, defence=MEAN).hits[on_pairs(found, a).gained] for a in WHITE)
    return least_or_none(_over_half(~each) for each in passed)


def knowing_restores(found: Results) -> Estimate | None:
    """Success through the filter minus that on the bare verifier, plus ten points."""

    def check(attack: str) -> Estimate | None:
        bare, through = _both_ways(found, attack)
        rest = ~(bare.met | through.met)
        return minus(paired(through.hits[rest], bare.hits[rest]), -0.1)

    return least_or_none(map(check, WHITE))


def _both_ways(found: Results, attack: str) -> tuple[Attacked, Attacked]:
    return on_pairs(found, attack), on_pairs(found, attack, defence=MEAN, threat="perfect")


def filter_shortens_noise(found: Results) -> Estimate | None:
    """The norm of noise minus that of what the filter leaves of it."""
    behind = (on_pairs(found, noise, _ANON, defence=MEAN) for noise in NOISE)
    return least_or_none(mean_or_none((each.l2 - each.defended)[each.generated]) for each in behind)


def longer(attacks: tuple[str, ...]) -> Callable[[Results], Estimate | None]:
    """The norm through the filter over that without it, minus 1: of pairs on which both succeed, and of the attacks."""

    def mean(found: Results, attack: str) -> Estimate | None:
        bare, through = _both_ways(found, attack)
        both = bare.gained & through.gained & (bare.l2 > 0)
        return mean_or_none(through.l2[both] / bare.l2[both] - 1)

    def check(found: Results) -> Estimate | None:
        return average_or_none(mean(found, attack) for attack in attacks)

    return check


def confidences(found: Results, defence: str, attack: str | None, goal: str) -> tuple[Floats, Floats]:
    """The black box's confidences on the attacked and on the clean pairs, of attacks that succeed where they were made.

    Without an attack both are of all clean pairs.
    """
    part = found[BLACK_BOX]
    cell = next(c for c in part["black_box"]["cells"] if (c["defence"], c["attack"]) == (defence, attack))
    which = np.array(cell["counted"], bool) & chosen(part, goal)
    return np.array(cell["values"])[which], np.array(cell["clean"])[which]


def lowers(found: Results) -> Estimate | None:
    """How much each attack lowers the confidence, at least."""
    cells = (confidences(found, NONE, attack, goal) for attack in (*WHITE, *NOISE) for goal in GOALS)
    return least_or_none(mean_or_none(clean - values) for values, clean in cells)


def defences_give_back(found: Results) -> Estimate | None:
    """How much each defence raises the confidence on noise, at least."""
    return least_or_none(mean_or_none(gain) for _, gain in _lost_and_given_back(found, NOISE, _ANON))


def impersonation_stays(found: Results) -> Estimate | None:
    """Half of what white-box impersonation takes, minus what each defence gives back."""
    return least_or_none(mean_or_none(lost / 2 - gain) for lost, gain in _lost_and_given_back(found, WHITE, _IMPERS))


def _lost_and_given_back(found: Results, attacks: tuple[str, ...], goal: str) -> list[tuple[Floats, Floats]]:
    pairs = []
    for attack in attacks:
        values, clean = confidences(found, NONE, attack, goal)
        behind = (confidences(found, defence, attack, goal)[0] for defence in (MEAN, DENOISER))
        pairs += [(clean - values, each - values) for each in behind]
    return pairs


def at_eer(found: Results, attack: str) -> tuple[Cell, Cell, Estimate | None]:
    """Mean norms of both goals at the threshold of the equal error rate, and the second over the first."""
    one, other = (attacked(found[THRESHOLDS], attack, goal) for goal in GOALS)
    ratio = mean_ratio(other.l2[other.gained], one.l2[one.gained])
    return one.length(), other.length(), None if ratio is None else ratio_of(vars(ratio))


def ratio_of(found: Mapping[str, Any]) -> Estimate:
    """A ratio of means from its description."""
    return Estimate(value=found["ratio"], low=found["low"], high=found["high"])


def impersonation_is_longer(found: Results) -> Estimate | None:
    """The ratio at the threshold of the equal error rate, minus 1."""
    return least_or_none(minus(at_eer(found, attack)[2], 1.0) for attack in WHITE)
