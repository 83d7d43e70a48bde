"""Pairs dealt from identities, for data that come without a list of pairs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastadv.data.pairs import Pair, PairError


def by_identity(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of each identity (the part before the last slash), in their order."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(name.rpartition("/")[0], []).append(name)
    return grouped


def deal_pairs(names: Iterable[str], count: int, *, folds: int = 10, seed: int = 0) -> tuple[Pair, ...]:
    """Pairs as LFW has them: half of each fold the same person, half not, no person in two folds, no pair twice.

    Args:
        names: `identity/file` names.
        count: Number of pairs in all; a multiple of 2·folds.
        folds: Number of folds, 1 or more.
        seed: The same seed deals the same pairs.

    Returns:
        The pairs, fold by fold, the same person first.

    Raises:
        PairError: A count that cannot be divided, or too few identities or images for it.
    """
    if folds < 1 or count < 2 * folds or count % (2 * folds):
        raise PairError(f"count: expected a positive multiple of 2 x {folds} folds, got {count}")
    grouped = by_identity(names)
    chance = random.Random(seed)
    people = sorted(grouped)
    _shuffle(people, chance)
    if len(people) < 2 * folds:
        raise PairError(f"names: expected at least {2 * folds} identities for {folds} folds, got {len(people)}")
    each = count // (2 * folds)
    pairs: list[Pair] = []
    for fold in range(folds):
        mine = {person: grouped[person] for person in people[fold::folds]}
        pairs += _same(mine, each, fold, chance)
        pairs += _different(mine, each, fold, chance)
    return tuple(pairs)


def _shuffle(items: list[Any], chance: random.Random) -> None:
    for i in range(len(items) - 1, 0, -1):
        j = chance.randrange(i + 1)
        items[i], items[j] = items[j], items[i]


def _same(mine: Mapping[str, Sequence[str]], each: int, fold: int, chance: random.Random) -> list[Pair]:
    possible = {person: len(found) * (len(found) - 1) // 2 for person, found in mine.items() if len(found) > 1}
    if sum(possible.values()) < each:
        raise PairError(f"names: expected {each} pairs of one person in fold {fold}, got {sum(possible.values())}")
    left = {person: _all_pairs(mine[person], chance) for person in possible}
    pairs: list[Pair] = []
    while len(pairs) < each:  # in turn, so that every person occurs
        for person in list(left):
            first, second = left[person].pop()
            pairs.append(Pair(first=first, second=second, same=True, fold=fold))
            if not left[person]:
                del left[person]
            if len(pairs) == each:
                break
    return pairs


def _all_pairs(found: Sequence[str], chance: random.Random) -> list[tuple[str, str]]:
    made = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    _shuffle(made, chance)
    return made


def _different(mine: Mapping[str, Sequence[str]], each: int, fold: int, chance: random.Random) -> list[Pair]:
    people = list(mine)
    sizes = [len(mine[person]) for person in people]
    possible = (sum(sizes) ** 2 - sum(size * size for size in sizes)) // 2
    if possible < each:
        raise PairError(f"names: expected {each} pairs of two people in fold {fold}, got {possible}")
    seen: set[frozenset[str]] = set()
    pairs: list[Pair] = []
    while len(pairs) < each:
        a, b = chance.randrange(len(people)), chance.randrange(len(people) - 1)
        one, other = people[a], people[b + (b >= a)]
        first = mine[one][chance.randrange(len(mine[one]))]
        second = mine[other][chance.randrange(len(mine[other]))]
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            pairs.append(Pair(first=first, second=second, same=False, fold=fold))
    return pairs
