"""Fit a detector of adversarial faces, save it, and try it on persons that it has not seen."""

import fastadv as fa

model = fa.load("synth-vgg")
known = fa.data.render_faces([*range(32)] * 2, [20] * 32 + [22] * 32, seed=3)  # two images of each person
unseen = fa.data.render_faces(range(64, 96), [20] * 32, seed=3)  # images, and the numbers of the persons
gallery = fa.data.render_faces(range(64, 96), [21] * 32, seed=3)  # another image of each of these


def attacked(images):
    return fa.attack("pgd", model, images, eps=8 / 255, steps=10).images


config = fa.detection.FitConfig(kind="mlp", epochs=50)
detector = fa.detection.fit(model, known.images, attacked(known.images), labels=known.identities, config=config)
detector.save("detector.safetensors")

names = [str(number) for number in unseen.identities.tolist()]
people = zip(names, gallery.images.split(1), strict=True)
detector = fa.detection.enrol(fa.load_detector("detector.safetensors"), model, people)

guard = fa.Guard(model=model, detector=detector)  # each image claims to show its person
natural, adversarial = guard(unseen.images, names), guard(attacked(unseen.images), names)
print(f"AUC on persons not seen: {fa.detection.auc(natural.scores, adversarial.scores):.3f}")
print(f"flagged: {adversarial.flagged.sum()} of {len(adversarial)} adversarial faces, ", end="")
print(f"{natural.flagged.sum()} of {len(natural)} natural ones (false alarms)")
