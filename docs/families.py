"""What the catalogue does not say of a family of attacks: its title, its formula, when to use it, and an example."""

from __future__ import annotations

from dataclasses import dataclass

from fastadv.attacks.registry import Entry
from fastadv.surrogates import Surrogate


@dataclass(frozen=True, kw_only=True)
class Family:
    """One page.

    Attributes:
        key: The page's file.
        title: Its heading.
        what: One sentence.
        formula: LaTeX.
        symbols: What the letters of the formula stand for.
        use: When to take it, and when something else.
        machine: The class of ``fastadv.attacks`` that runs it, or of ``fastadv.surrogates``.
        example: Python that runs as it stands.
    """

    key: str
    title: str
    what: str
    formula: str
    symbols: str
    use: str
    machine: str
    example: str


_FACES = """import fastadv as fa

model = fa.load("synth-mobile")
faces = fa.data.render_faces([0, 1, 2, 3], [0, 0, 0, 0], seed=7).images
goal = fa.Impersonate(faces.roll(1, 0), threshold=0.5)
"""
_CLASSES = """import torch
import fastadv as fa

model = fa.load("synth-vgg")
people = torch.tensor([0, 1, 2, 4])  # four of the 500 people that its class head knows
faces = fa.data.render_faces(people.tolist(), [0, 0, 0, 0], seed=3).images
"""

FAMILIES = (
    Family(
        key="one_step",
        title="One-step attacks",
        what="One step of the length of the whole budget, along the sign of the gradient at the clean image.",
        formula=r"x' = \mathrm{clip}_{[0,1]}\bigl(x + \varepsilon \, \mathrm{sign} \, \nabla_x J(x)\bigr)",
        symbols="J is the loss of the goal: the cross-entropy of a class, or the distance of two embeddings.",
        use="Use a one-step attack as the cheapest baseline (one gradient evaluation per image), for adversarial "
        "training, and to look for masked gradients: an iterative attack of the same budget must succeed at least as "
        "often. To measure robustness, use an iterative attack.",
        machine="SignGradient",
        example=_FACES + 'made = fa.attack("ffm", model, faces, goal=goal, eps=8 / 255)\nprint(made)\n',
    ),
    Family(
        key="iterative",
        title="Iterative sign-gradient attacks",
        what="Steps along the sign of the gradient, each projected into the budget: BIM, PGD (also on C&W's margin), "
        "MI-FGSM, FIM and M-FIM.",
        formula=r"\begin{aligned} v_{t+1} &= \mu v_t + \frac{\nabla_x J(x_t)}{\lVert \nabla_x J(x_t) \rVert_1} \\ "
        r"x_{t+1} &= \Pi_{\varepsilon}\bigl(x_t + \alpha \, \mathrm{sign} \, v_{t+1}\bigr) \end{aligned}",
        symbols="Π projects into the ball of radius ε around the clean image and into [0, 1]. Without momentum, "
        "v is the gradient itself. In L2 the step is α v / ‖v‖₂.",
        use="Use `pgd` to measure the robustness of a classifier at a given budget, and `fim` that of a face verifier. "
        "`pgd` starts at a random point, which an evasion from the image's own embedding needs: the gradient of that "
        "distance is zero at the clean image. `pgd-cw` is the C&W attack of papers that report it at an ε; it ends "
        "as soon as the goal is reached. Momentum (`mi-fgsm`, `m-fim`) helps an attack transfer to other networks when "
        "there are few steps.",
        machine="SignGradient",
        example=_FACES
        + 'made = fa.attack("fim", model, faces, goal=goal, eps=8 / 255)\nprint(made)\n\n'
        + "# the same images at three budgets\n"
        + 'for made in fa.attack("pgd", model, faces, goal=goal, eps=[2 / 255, 4 / 255, 8 / 255], steps=5):\n'
        + "    print(made)\n",
    ),
    Family(
        key="transferable",
        title="Transferable attacks",
        what="Iterative attacks on a surrogate: the model with random masks, random transformations of the image, "
        "damped residual branches, a smoothed gradient, or further networks.",
        formula=r"g_t = W * \sum_k w_k \nabla_x J\bigl(F_k(T(x_t; p); M_t)\bigr)",
        symbols="T is the random transformation (DI), M the fresh masks on every convolution (DFANet), F with weights "
        "w the networks of the ensemble (E), W the smoothing kernel (TI). S-FIM multiplies the gradient of every "
        "residual branch by γ.",
        use="Use these where the target network cannot be differentiated: the attack is generated on a surrogate A and "
        "evaluated on a target B. On the surrogate itself `fim` and `pgd` need fewer steps. "
        "{doc}`/transfer` has the measured transfer rates.",
        machine="SignGradient",
        example=_FACES
        + 'made = fa.attack("dfanet-di-m-fim", model, faces, goal=goal, eps=10 / 255, steps=10)\n'
        + 'target = fa.load("synth-resnet")\n'
        + "similarity = (target(made.images) * target(faces.roll(1, 0))).sum(1)\n"
        + "print(made, similarity)\n",
    ),
    Family(
        key="auto_pgd",
        title="Auto-PGD",
        what="Projected ascent that chooses its own step size and restarts from its best point.",
        formula=r"\begin{aligned} z_{t+1} &= \Pi_{\varepsilon}\bigl(x_t + \eta_t \, \mathrm{sign} \, \nabla_x "
        r"J(x_t)\bigr) \\ x_{t+1} &= \Pi_{\varepsilon}\bigl(x_t + 0.75 (z_{t+1} - x_t) + 0.25 (x_t - x_{t-1})\bigr) "
        r"\end{aligned}",
        symbols="The step size η begins at 2ε and is halved at checkpoints where the loss has not risen enough.",
        use="Use it where a step size would have to be tuned, and to check a defence at a given budget. "
        "`apgd-dlr` is for classifiers whose logits have a large scale; it needs a class head.",
        machine="APGD",
        example=_FACES + 'made = fa.attack("apgd", model, faces, goal=goal, eps=8 / 255, steps=20)\nprint(made)\n',
    ),
    Family(
        key="deep_features",
        title="Deep-feature attacks",
        what="L-BFGS-B towards the features of a guide image, at the embedding or at any layer.",
        formula=r"\min_{x'} \lVert \varphi_k(x') - \varphi_k(x_{\mathrm{guide}}) \rVert_2^2 \quad \text{subject to} "
        r"\quad \lVert x' - x \rVert_\infty \le \delta, \; x' \in [0, 1]",
        symbols="φ are the features of layer k.",
        use="Use `df` to imitate a person's features, and `knn-df` against identification by the nearest template: it "
        "stops as soon as the template of the wanted person is the nearest one.",
        machine="LBFGSB",
        example=_FACES
        + "guides = faces.roll(1, 0)\n"
        + 'made = fa.attack("df", model, faces, goal=fa.MatchFeatures(guides, threshold=0.9), eps=10 / 255, steps=12)\n'
        + "print(made, made.score_after)  # the score is the distance to the guide's features\n",
    ),
    Family(
        key="lbfgs",
        title="L-BFGS",
        what="The smallest perturbation by a penalty, minimised with L-BFGS-B.",
        formula=r"\min_{r} \lVert r \rVert_2^2 + C \, L(x + r) \quad \text{subject to} \quad x + r \in [0, 1]",
        symbols="L is the loss of the goal; C is the smallest constant that reaches the goal, found by bisection for "
        "each image.",
        use="Use it for a small L2 distance where the network is smooth. Run it in float32: bfloat16 rounding disturbs "
        "its line search.",
        machine="LBFGS",
        example=_FACES
        + 'made = fa.attack("lbfgs", model, faces, goal=goal, steps=2, searches=4)\n'
        + "print(made, made.l2)\n",
    ),
    Family(
        key="carlini_wagner",
        title="Carlini and Wagner",
        what="The smallest perturbation by a penalty, minimised with Adam in tanh space, in L2, L∞ or L0.",
        formula=r"\min_{w} \lVert x' - x \rVert_2^2 + c \, f(x'), \quad x' = \tfrac{1}{2} + \tfrac{1}{2} \tanh w, "
        r"\quad f = \max(\mathrm{shortfall}, -\kappa)",
        symbols="The shortfall is the distance of the goal's score from its border: a margin of logits, or a "
        "similarity from the threshold. κ is `confidence`; c is searched for each image.",
        use="Use `cw-l2` to measure the smallest distance at which a network fails. One search of 60 steps "
        "(`search_steps=1, steps=60`) is usually enough, since the search begins at the constant that a linear network "
        "would need. Raise `confidence` where another system decides.",
        machine="CarliniWagner",
        example=_FACES
        + 'made = fa.attack("cw-l2", model, faces, goal=goal, steps=30, search_steps=1)\nprint(made, made.l2)\n',
    ),
    Family(
        key="deepfool",
        title="DeepFool",
        what="Steps to the nearest linearised decision border until the decision changes.",
        formula=r"x_{t+1} = x_t - (1 + \mathrm{overshoot}) \, \frac{f_k(x_t)}{\lVert \nabla f_k(x_t) \rVert_2^2} "
        r"\nabla f_k(x_t), \quad k = \arg\min_j \frac{f_j}{\lVert \nabla f_j \rVert_2}",
        symbols="f is the margin over class k, or of a similarity over the threshold.",
        use="Use it for a fast estimate of the smallest distance: a few gradient evaluations per image, whatever the "
        "number of classes. `returns=1, candidates=1` gives a smaller L2 in fewer evaluations. Where the border is "
        "very close (an L2 of about 0.1), rounding to 8 bits can undo the success: set `margin`.",
        machine="DeepFool",
        example=_CLASSES
        + 'made = fa.attack("deepfool", model, faces, people, returns=1, candidates=1)\nprint(made, made.l2)\n',
    ),
    Family(
        key="smallest_eps",
        title="The smallest budget",
        what="A bisection on ε, for each image: the smallest budget at which an attack succeeds.",
        formula=r"\varepsilon^*(x) = \min \{\varepsilon : \mathrm{attack}_\varepsilon(x) \text{ reaches its goal}\}",
        symbols="The attack is `fgsm` along the gradient of the clean image, or any iterative sign-gradient attack.",
        use="Use it to draw success over budget from one run, instead of one run per budget.",
        machine="MinimalEps",
        example=_FACES + 'made = fa.attack("minimal-fgsm", model, faces, goal=goal)\nprint(made, made.linf * 255)\n',
    ),
    Family(
        key="noise",
        title="Noise",
        what="Random noise that grows until the decision changes; it needs no gradient.",
        formula=r"x' = \mathrm{clip}_{[0,1]}(x + \sigma z), \quad z \sim \mathcal{U}[-\sqrt{3}, \sqrt{3}) \text{ or } "
        r"\mathcal{N}(0, 1)",
        symbols="σ is the smallest size that reaches the goal, found by bisection; z is one draw for each image.",
        use="Use it as the baseline that every gradient attack must beat: where noise of the same length succeeds as "
        "often, the gradients are masked. It seldom reaches another person's embedding.",
        machine="Noise",
        example=_CLASSES + 'made = fa.attack("noise-uniform", model, faces, people)\nprint(made, made.l2)\n',
    ),
)

# what stands behind the short names of the catalogue's sources
REFERENCES = {
    "Adversarial attack as a defence": '"Adversarial attack as a defence", 2021.',
    "Croce and Hein": 'Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse '
    'parameter-free attacks".',
    "Dong et al.": 'Dong et al. 2019, "Evading defenses to transferable adversarial examples by translation-invariant '
    'attacks".',
    "Madry et al.": 'Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks".',
    "Massoli et al.": 'Massoli et al. 2021, "Detection of face recognition adversarial attacks".',
    "Mehr and Schroeder": 'Mehr and Schroeder, "Six Pixels to Kevin Bacon".',
    "Moosavi-Dezfooli et al.": 'Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool '
    'deep neural networks".',
    "Szegedy et al.": 'Szegedy et al. 2014, "Intriguing properties of neural networks".',
    "Wu et al.": 'Wu et al. 2020, "Skip connections matter: on the transferability of adversarial examples '
    'generated with ResNets".',
    "Xie et al.": 'Xie et al. 2019, "Improving transferability of adversarial examples with input diversity".',
    "Yang et al.": 'Yang et al. 2020, "RobFR: benchmarking adversarial robustness on face recognition".',
    "Zhong and Deng": 'Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition".',
}

_BY_MACHINE = {
    "APGD": "auto_pgd",
    "LBFGSB": "deep_features",
    "LBFGS": "lbfgs",
    "CarliniWagner": "carlini_wagner",
    "CarliniWagnerBall": "iterative",
    "CarliniWagnerLinf": "carlini_wagner",
    "CarliniWagnerL0": "carlini_wagner",
    "DeepFool": "deepfool",
    "MinimalEps": "smallest_eps",
    "MinimalFGSM": "smallest_eps",
    "Noise": "noise",
}


def family_key(entry: Entry) -> str:
    """The page of an attack: that of its surrogate where it has one, else of the class that runs it.

    Raises:
        KeyError: A class that no page is about.
    """
    if entry.ensemble:
        return "transferable"
    made = entry.make()
    if made.surrogate != Surrogate():
        return "transferable"
    machine = type(made.attack).__name__
    if machine == "SignGradient":
        return "iterative" if entry.steps else "one_step"
    return _BY_MACHINE[machine]
