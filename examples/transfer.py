"""Attack one network and show the images to another: the transfer of FIM, and of FIM with DFANet."""

import torch

import fastadv as fa

surrogate, target = fa.load("synth-vgg"), fa.load("synth-mobile")
threshold = 0.46  # a cosine: 1 % false accepts on synthetic faces, with either network
images = fa.data.render_faces(range(16), [0] * 16, seed=2).images
references = fa.data.render_faces(range(16), [1] * 16, seed=2).images  # the same persons
goal = fa.Evade(references=references, threshold=threshold)


@torch.no_grad()
def refused(model, faces):
    return int(((model(faces) * model(references)).sum(1) < threshold).sum())


print(f"without an attack, of {len(images)} faces: {target.name} refuses {refused(target, images)}")
eps = 16 / 255
for attack in (
    fa.attacks.fim(eps=eps, steps=20),
    fa.attacks.dfanet_fim(eps=eps, steps=20, rate=0.1),
    fa.attacks.dfanet_di_m_fim(eps=eps, steps=20, rate=0.1),  # with input diversity and momentum too
):
    adversarial = fa.run(attack, goal, surrogate, images)
    there = refused(target, adversarial.images)
    print(f"{attack.name}: {surrogate.name} refuses {adversarial.success.sum()}, {target.name} refuses {there}")
