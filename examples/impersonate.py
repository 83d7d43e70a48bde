"""Change faces so that a face verifier takes each for another person, and save the images."""

import fastadv as fa

model = fa.load("synth-mobile")  # your own: fa.wrap(network, input_size=112, mean=0.5, std=0.5, output="embedding")
threshold = 0.46  # the verifier accepts a cosine from here on: 1 % false accepts on synthetic faces

sources = fa.data.render_faces(range(16), [0] * 16, seed=2).images
targets = fa.data.render_faces(range(16, 32), [0] * 16, seed=2).images  # an image of another person for each

goal = fa.Impersonate(targets, threshold=threshold)
adversarial = fa.run(fa.attacks.fim(eps=8 / 255, steps=10), goal, model, sources)

print(adversarial)
print(f"mean similarity to the target: {adversarial.score_before.mean():.2f} before, ", end="")
print(f"{adversarial.score_after.mean():.2f} after")
print(f"images and results.csv: {adversarial.save('impersonation')}")
