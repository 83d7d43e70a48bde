"""Studies of verifiers under images that were attacked elsewhere, as parts of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastadv.attacks.spec import parse_attack
from fastadv.core.progress import Progress
from fastadv.data import Pair, write_pairs_csv
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.stored import ImageFormat
from fastadv.runs.inputs import PairChoice, open_faces
from fastadv.studies.defences.folder import DefencePlan, defend_folder
from fastadv.studies.defences.results import describe
from fastadv.studies.papers.faces import some_people
from fastadv.studies.papers.recipe import Cost, Setup, StudyPart
from fastadv.studies.papers.traces import roc_trace
from fastadv.studies.papers.transfer_parts import EPS
from fastadv.studies.talfw.folder import TalfwPlan, build_folder
from fastadv.studies.transfer.areas import area_draws
from fastadv.studies.transfer.folder import TransferPlan, transfer_folder
from fastadv.studies.transfer.plan import Universal, parse_untargeted
from fastadv.studies.transfer.untargeted import halve

CLEAN = "no attack"
_SIZE = 112  # of crops that only names are taken of


@dataclass(frozen=True, kw_only=True)
class MatrixPart(StudyPart):
    """A matrix of scores between images, half of which are attacked untargeted on the first network.

    The people are drawn by the seed from those with enough images.

    Attributes:
        people: How many, at most.
        each: Images of each.
        queries: Whether half of each person's images are compared with the other half; else all with all.
        methods: As of an untargeted `TransferPlan`.
        steps: Of methods that do not say their own.
    """

    people: int
    each: int
    queries: bool
    methods: tuple[str, ...]
    steps: int

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Run the study in the folder."""
        pairs, file = self.pairs(setup), folder / "pairs.csv"
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs_csv(file, pairs)
        plan = TransferPlan(
            inputs=setup.inputs(folder / "study", ""),
            networks=setup.networks,
            methods=self.methods,
            surrogates=setup.names[:1],
            untargeted=True,
            eps=EPS,
            steps=self.steps,
            pairs=1,
            images=1,
            far=(1e-2,),
            verification=PairChoice(file=file),
        )
        found = transfer_folder(plan, progress=progress).untargeted
        assert found is not None
        _, remaining = halve(pairs, seed=setup.seed)
        methods, same = (CLEAN, *found.methods), found.same
        flat = found.scores.reshape(-1, len(same))
        areas = area_draws(flat, [pair for pair, _ in remaining], seed=setup.seed)
        shape = (len(methods), len(found.networks), areas.shape[1])
        curves = {
            network: [
                asdict(roc_trace(m, found.scores[k, place][~same], found.scores[k, place][same]))
                for k, m in enumerate(methods)
            ]
            for place, network in enumerate(found.networks)
        }
        return {
            "surrogate": found.surrogate,
            "networks": list(found.networks),
            "methods": [method.partition(":")[0] for method in methods],
            "pairs": len(same),
            "areas": areas.round(6).reshape(shape).tolist(),
            "curves": curves,
        }

    def pairs(self, setup: Setup) -> tuple[Pair, ...]:
        """The pairs of the matrix, each once."""
        assert setup.data is not None
        source = open_faces(setup.data, size=_SIZE, landmarks=setup.landmarks)
        drawn = some_people(source, people=self.people, least=self.each, most=self.each, seed=setup.seed)
        images = [
            (person, place, name)
            for person, names in by_identity(drawn.names).items()
            for place, name in enumerate(names)
        ]
        return tuple(
            Pair(first=name, second=other, same=person == another)
            for number, (person, place, name) in enumerate(images)
            for later, (another, beside, other) in enumerate(images)
            if (place % 2 < beside % 2 if self.queries else number < later)
        )

    def cost(self, setup: Setup) -> Cost:
        """Half of the images, by every method."""
        images = self.people * self.each
        methods = [parse_untargeted(text) for text in self.methods]
        steps = sum(0 if isinstance(m, Universal) else m.recipe(eps=EPS, steps=self.steps).steps for m in methods)
        alone = sum(m.steps for m in methods if isinstance(m, Universal))
        shown = (images + images // 2 * len(methods)) * len(setup.networks)
        return Cost(gradients=images // 2 * steps + alone, forwards=shown + images, images=images // 2 * len(methods))


@dataclass(frozen=True, kw_only=True)
class CopyPart(StudyPart):
    """A transferable adversarial copy of the verification pairs, generated on the first network, and shown to all.

    Attributes:
        attack: Its text.
        limit: So many pairs, or all.
        defences: Texts of the defences of the second network.
    """

    attack: str
    limit: int | None
    defences: tuple[str, ...]

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Generate the copy, and verify both with every network."""
        pairs = setup.verification(self.limit)
        plan = TalfwPlan(
            inputs=setup.inputs(folder / "copy"),
            attack=parse_attack(self.attack).recipe(),
            pairs=pairs,
            stored=ImageFormat(),
        )
        summary, reader = build_folder(plan, progress=progress)
        networks, defended = {}, {}
        for place, (name, text) in enumerate(zip(setup.names, setup.networks, strict=True)):
            found = describe(
                defend_folder(
                    DefencePlan(
                        inputs=setup.inputs(folder / f"verify-{place}", text),
                        defences=self.defences if place == 1 else (),
                        threats=("zero",),
                        copies=(Path(reader[1]),),
                        pairs=pairs,
                    ),
                    progress=progress,
                )
            )
            clean = {row["defence"]: row["clean"]["accuracy"] for row in found["defences"]}
            copied = {cell["defence"]: cell["accuracy_refitted"] for cell in found["cells"]}
            rows = {
                label: [round(share * found["pairs"]) for share in (clean[label], copied[label])] for label in clean
            }
            networks[name] = rows["none"]
            if place == 1:
                defended = rows
        return {
            "surrogate": setup.names[0],
            "changed": summary.changed,
            "pairs": summary.pairs,
            "right": networks,
            "defended": defended,
        }

    def cost(self, setup: Setup) -> Cost:
        """One attacked image for each pair; every image of both sets by every verifier."""
        pairs = self.limit or 6000
        steps, verifiers = parse_attack(self.attack).recipe().steps, len(setup.networks) + len(self.defences)
        return Cost(gradients=pairs * steps, forwards=4 * pairs * verifiers, images=5 * pairs)
