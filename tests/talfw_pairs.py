"""Pairs of four people, and the adversarial copy of them."""

import numpy as np
from PIL import Image

from fastadv import attacks
from fastadv.data import Pair, RunFolder
from fastadv.engine import Engine
from fastadv.runs import Work, describe, list_hash
from fastadv.studies.talfw.measure import build, claim, plan

PEOPLE = ("Ann_A", "Bo", "Cy", "Di")
EPS = 16 / 255


def name(person: int, number: int) -> str:
    return f"{PEOPLE[person]}/{PEOPLE[person]}_{number:04d}"


def pair(first: tuple[int, int], second: tuple[int, int], fold: int = 0) -> Pair:
    return Pair(first=name(*first), second=name(*second), same=first[0] == second[0], fold=fold)


PAIRS = (
    pair((0, 1), (0, 2)),
    pair((1, 1), (1, 2)),
    pair((0, 1), (2, 1)),
    pair((0, 1), (3, 1)),
    pair((2, 2), (2, 3), 1),
    pair((2, 2), (2, 1), 1),
    pair((3, 2), (1, 3), 1),
    pair((3, 2), (0, 3), 1),
)


def make(source, pairs, model, out, attack=None, *, targets="all", threshold=None, **more):
    moves = attack or attacks.fim(eps=EPS, steps=20)
    aims = plan(source, pairs, targets=targets)
    engine = Engine(batch=4).resolve(model)
    config = {"attack": describe(moves), "orders": list_hash(aims), "threshold": threshold}
    with RunFolder.open(claim(out), config) as folder:
        work = Work(folder=folder, engine=engine)
        return build(aims, pairs, source, model, moves, work, out=out, threshold=threshold, **more)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def mode(path):
    with Image.open(path) as image:
        return image.mode
