"""Put a defence in front of a verifier, and attack it without and with knowledge of the defence."""

import torch

import fastadv as fa
from fastadv.defences import Jpeg, MeanFilter, PerfectKnowledge, ZeroKnowledge

model = fa.load("synth-mobile")
threshold = 0.46  # a cosine: 1 % false accepts on synthetic faces
images = fa.data.render_faces(range(16), [0] * 16, seed=2).images
references = fa.data.render_faces(range(16), [1] * 16, seed=2).images  # the same persons
goal = fa.Evade(references=references, threshold=threshold)
attack = fa.attacks.fim(eps=4 / 255, steps=10)


@torch.no_grad()
def refused(verifier, faces):
    return int(((verifier(faces) * verifier(references)).sum(1) < threshold).sum())


print(f"faces of {len(images)} that are refused, attacked by {attack.name}:")
for defence in (MeanFilter(size=3), Jpeg(quality=20)):
    defended = defence.wrap(model)
    counts = {"no attack": refused(defended, images)}
    for threat in (ZeroKnowledge(), PerfectKnowledge()):
        attacker = threat.attacker(attack, model, defence)
        adversarial = fa.run(attacker.recipe, attacker.goal(goal), attacker.model, images)
        counts[f"{threat.name} knowledge"] = refused(defended, adversarial.images)
    print(defended.name, counts)
