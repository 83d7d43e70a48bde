"""Error messages name what they were given in one short line: of a tensor its shape and type, never its numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv import attacks, defences, ops, surrogates
from fastadv.attacks import Evade, Impersonate, Linf
from fastadv.core.brief import brief
from fastadv.engine import Engine, Job, stream_jobs, trace

BIG = torch.rand(2, 3, 16, 16)
GREY = "a Tensor of torch.float32 of shape (2, 3, 16, 16)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (BIG, GREY),
        (torch.tensor(0.5), "a Tensor of torch.float32 of shape ()"),
        (np.zeros((2, 3)), "a ndarray of float64 of shape (2, 3)"),
        (np.float32(0.5), repr(np.float32(0.5))),
        (0.5, "0.5"),
        ("x", "'x'"),
        ((BIG,), f"({GREY},)"),
        ([1, BIG], f"[1, {GREY}]"),
        ({"a": 1}, "{'a': 1}"),
        (nn.Sequential(nn.Linear(2, 2)), "Sequential"),
        (nn.LSTM(2, 3), "LSTM(2, 3)"),
        (Linf(0.5), repr(Linf(0.5))),
        (Evade(threshold=0.5), repr(Evade(threshold=0.5))),
        (Impersonate(BIG, threshold=0.5), f"Impersonate(targets={GREY}, threshold=0.5, metric='cosine')"),
        (Exception, "<class 'Exception'>"),
        ("x" * 500, f"'{'x' * 116}..."),
    ],
)
def test_a_value_in_one_line(value, text):
    assert brief(value) == text


def model() -> fa.FaceModel:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    return fa.FaceModel(net, input_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, name="small").eval()


def mixed() -> list[Job]:
    kinds = (Impersonate(BIG[:1], threshold=0.5), Impersonate(BIG[:1], threshold=0.6))
    return [Job(name=str(i), id=i, image=BIG[i], goal=goal) for i, goal in enumerate(kinds)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: list(stream_jobs(attacks.pgd(steps=1), mixed(), model())),
        lambda: fa.run(BIG, Impersonate(BIG, threshold=0.5), model(), BIG),
        lambda: fa.run(model(), Impersonate(BIG, threshold=0.5), model(), BIG),
        lambda: fa.run(attacks.pgd(), Impersonate(BIG, threshold=0.5), model(), BIG, seed=BIG),
        lambda: fa.run(attacks.pgd(), Impersonate(BIG, threshold=0.5), model(), BIG, ids=[BIG.numpy().tolist(), 1]),
        lambda: next(trace(attacks.pgd(), Impersonate(BIG, threshold=0.5), model(), BIG, at=[10**9] * 500)),
        lambda: Linf(BIG),
        lambda: attacks.fim(eps=torch.tensor([8 / 255])),
        lambda: attacks.pgd(steps=BIG),
        lambda: attacks.CarliniWagner(confidence=BIG),
        lambda: attacks.SignGradient(budget=BIG, steps=3, step_size=0.1),
        lambda: Impersonate(BIG, threshold=BIG),
        lambda: Engine(batch=BIG),
        lambda: Engine(precision=[BIG]),
        lambda: fa.FaceModel(nn.Flatten(), mean=BIG, std=(0.5,) * 3, name="x"),
        lambda: fa.FaceModel(nn.Flatten(), mean=(0.5,) * 3, std=(0.5,) * 3, name="x", input_size=BIG),
        lambda: surrogates.Ensemble(others=(nn.Sequential(nn.Linear(2, 2)), BIG)),
        lambda: surrogates.Ensemble(others=(model(),), weights=(float("nan"), BIG.tolist())),
        lambda: surrogates.SkipGradient(gamma=BIG),
        lambda: surrogates.FeatureDropout(rate=BIG),
        lambda: surrogates.InputDiversity(probability=BIG),
        lambda: defences.Jpeg(quality=BIG),
        lambda: defences.BitDepth(bits=BIG),
        lambda: ops.add_noise(BIG, BIG, kind=BIG, seed=0, ids=torch.arange(2), scale=0.1),
    ],
)
def test_no_message_holds_the_numbers_of_a_tensor(call):
    with pytest.raises((fa.Error, TypeError)) as error:
        call()
    text = str(error.value)
    assert "tensor(" not in text
    assert "array(" not in text
    assert "\n" not in text
    assert len(text) < 400
