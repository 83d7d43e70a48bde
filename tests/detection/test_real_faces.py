"""On real faces and a trained network: trajectories end at the person, and an attack bends them."""

from __future__ import annotations

import pytest
import torch

from fastadv.data import LFW
from fastadv.detection import LayerTap, Trajectory, centroids, medoids
from fastadv.models import load, prepare

PEOPLE = ("Colin_Powell", "Gerhard_Schroeder", "Hugo_Chavez", "Tony_Blair")


@pytest.mark.faces
def test_trajectories_of_people(data_root):
    lfw = LFW(data_root / "lfw")
    model = prepare(load("mobilefacenet", data_root / "weights" / "mobilefacenet_relu6_ms1m_arcface.safetensors"))
    tap = LayerTap(model=model)
    names = [[n for n in lfw.names if n.startswith(f"{person}/")][:5] for person in PEOPLE]
    images = torch.stack([lfw.load(n).image for group in names for n in group])
    with torch.no_grad():
        tapped = tap(images.contiguous(memory_format=torch.channels_last))
    labels = torch.arange(4).repeat_interleave(5)
    known = (torch.arange(20) % 5) < 4
    batch = [([v[known] for v in tapped.values], labels[known])]
    for make in (centroids, medoids):
        made = make(batch, layers=tap.names, classes=PEOPLE, model=model.name)
        for metric in ("l2", "cosine"):
            trajectory = Trajectory(representatives=made, metric=metric)
            path = trajectory([v[~known] for v in tapped.values])
            assert path.shape == (4, 15, 4)
            assert path[:, -1].argmin(1).tolist() == labels[~known].tolist()  # the last layer knows the person

    # One signed step towards somebody else: the trajectory ends nearer to that person than it did.
    x = images[~known].clone().contiguous(memory_format=torch.channels_last).requires_grad_(True)
    target = (labels[~known] + 1) % 4
    before = trajectory(tap(x).values)[:, -1].gather(1, target[:, None])
    (gradient,) = torch.autograd.grad(before.sum(), x)
    with torch.no_grad():
        after = trajectory(tap((x - 4 / 255 * gradient.sign()).clamp(0, 1)).values)[:, -1].gather(1, target[:, None])
    assert (after < before).all()
