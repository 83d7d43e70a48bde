"""Attack a classifier of faces with PGD, and count the successes at three radii."""

import torch
from torch import nn

import fastadv as fa

# Any network from images to logits. This one knows persons 0 to 499 of the synthetic faces with seed 3.
shipped = fa.load("synth-vgg")
network = nn.Sequential(shipped.backbone, shipped.head)
model = fa.wrap(network, input_size=112, mean=0.5, std=0.5)

faces = fa.data.render_faces(range(32), [20] * 32, seed=3)  # an image of each of 32 persons, not seen in training
with torch.no_grad():
    correct = model.logits(faces.images).argmax(1) == faces.identities
images, labels = faces.images[correct], faces.identities[correct]
print(f"recognised without an attack: {len(images)} of {len(correct)} faces")

radii = [1 / 255, 2 / 255, 4 / 255]
results = fa.attack("pgd", model, images, labels, eps=radii, steps=20, stop_at_success=True)
for eps, adversarial in zip(radii, results, strict=True):
    print(f"eps {eps * 255:.0f}/255: {adversarial}")
