"""Four people in LFW's layout, a small network, and the adversarial copy of their pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from talfw_pairs import PAIRS, PEOPLE, make
from torch import nn

import fastadv as fa
from fastadv.data import LFW
from fastadv.data.alignment import template
from fastadv.data.lfw import write_lfw_pairs


@pytest.fixture(scope="module")
def lfw(tmp_path_factory):
    """Four people of three images in LFW's layout, 150 x 130, as PNG and JPEG; the face fills a part."""
    root = tmp_path_factory.mktemp("lfw")
    rng = np.random.default_rng(0)
    turn = np.array([[0.996, 0.087], [-0.087, 0.996]])
    lines = []
    for person, who in enumerate(PEOPLE):
        look = rng.integers(60, 196, (6, 6, 3))
        for number in (1, 2, 3):
            noisy = np.clip(look + rng.integers(-15, 15, look.shape), 0, 255).astype(np.uint8)
            path = root / "images" / who / f"{who}_{number:04d}.{'png' if number == 1 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).resize((150, 130), Image.Resampling.BICUBIC).save(path)
            points = template(112) @ turn + (8 + person, 14)
            lines.append(f"{who}/{path.name} " + " ".join(f"{v:.2f}" for v in points.ravel()) + " 0.99")
    (root / "landmarks.txt").write_text("\n".join(lines) + "\n")
    write_lfw_pairs(root / "pairs.txt", PAIRS)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.AvgPool2d(7), nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16, bias=False)
    )
    return fa.FaceModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, name="small").eval()


@pytest.fixture(scope="module")
def made(lfw, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("talfw") / "out"
    return out, make(LFW(lfw), LFW(lfw).pairs, model, out)
