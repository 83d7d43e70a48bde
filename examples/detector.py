"""Fit a detector of adversarial faces, save it, and try it on persons that it has not seen."""

import fastadv as fa

model = fa.load("synth-vgg")
known = fa.data.render_faces(range(64), [20] * 64, seed=3)  # images, and the numbers of the persons
unseen = fa.data.render_faces(range(64, 96), [20] * 32, seed=3)


def attacked(images):
    return fa.attack("pgd", model, images, eps=8 / 255, steps=10).images


config = fa.detection.FitConfig(kind="mlp", epochs=50)
detector = fa.detection.fit(model, known.images, attacked(known.images), labels=known.identities, config=config)
detector.save("detector.safetensors")

guard = fa.Guard(model=model, detector=fa.load_detector("detector.safetensors"))
natural, adversarial = guard(unseen.images), guard(attacked(unseen.images))
print(f"AUC on persons not seen: {fa.detection.auc(natural.scores, adversarial.scores):.3f}")
print(f"flagged: {adversarial.flagged.sum()} of {len(adversarial)} adversarial faces, ", end="")
print(f"{natural.flagged.sum()} of {len(natural)} natural ones (false alarms)")
