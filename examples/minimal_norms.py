"""The smallest change that makes a classifier fail, by three attacks."""

import torch

import fastadv as fa

model = fa.load("synth-vgg")  # recognises persons 0 to 499 of the synthetic faces with seed 3
faces = fa.data.render_faces(range(16), [20] * 16, seed=3)
with torch.no_grad():
    correct = model.logits(faces.images).argmax(1) == faces.identities
images, goal = faces.images[correct], fa.Misclassify(faces.identities[correct])

print(f"{'attack':12}  success  median L2  median L∞ x 255  evaluations")
for attack in (
    fa.attacks.deepfool(),
    fa.attacks.cw_l2(steps=20),  # 5 runs of 20 steps; 1000 by default, for smaller norms
    fa.attacks.minimal_fim(steps=5),
):
    adversarial = fa.run(attack, goal, model, images)
    found = adversarial.success
    l2, linf = adversarial.l2[found].median(), adversarial.linf[found].median() * 255
    evaluations = adversarial.ticks.float().mean()
    print(f"{attack.name:12}  {found.sum():2} of {len(found)}  {l2:9.2f}  {linf:15.1f}  {evaluations:11.0f}")
