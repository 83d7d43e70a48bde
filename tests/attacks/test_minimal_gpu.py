"""The attacks that look for the smallest perturbation as CUDA graphs: the bits of the eager tick."""

import pytest
import torch

import fastadv as fa
from fastadv.attacks import APGD, CATALOG, CarliniWagnerL0, Impersonate, by_name, seeks_smallest
from fastadv.engine import Engine
from fastadv.models import load

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*:fastadv.AttackWarning")]

SINGLE = {name: by_name(name).attack for name, entry in CATALOG.items() if not entry.ensemble}
NAMES = [
    name
    for name, attack in SINGLE.items()
    if (seeks_smallest(attack) or isinstance(attack, APGD)) and not attack.logits_only
]


@pytest.mark.parametrize("name", NAMES)
def test_the_captured_tick_gives_the_eager_ones_bits(name):
    generator = torch.Generator().manual_seed(1)
    x, targets = (torch.round(torch.rand(11, 3, 112, 112, generator=generator) * 255) / 255 for _ in range(2))
    model = load("mobileface_v2", random_weights_seed=0, device="cuda").eval()
    attack = by_name(name, steps=6) if CATALOG[name].steps else by_name(name)
    if isinstance(attack.attack, CarliniWagnerL0):  # shrinks its set pixel by pixel for thousands of ticks otherwise
        attack = by_name(name, steps=6, search_steps=1, retries=0)
    goal = Impersonate(targets, threshold=0.9)
    made = [
        fa.run(
            attack,
            goal,
            model,
            x,
            seed=3,
            engine=Engine(precision="fp32", slots=8, batch=8, capture=capture, poll=poll),
        )
        for capture, poll in ((False, 1), (True, 1), (True, 4))
    ]
    for other in made[1:]:
        assert torch.equal(other.images, made[0].images)
        assert torch.equal(other.ticks, made[0].ticks)
