"""What an adaptive attacker is to reach besides passing the detector: a class, or what a verifier decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks import Evade, Goal, Impersonate, Rows
from fastadv.attacks.feature_goals import GalleryClass
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable
from fastadv.core.statistics import threshold_at_far
from fastadv.detection import Detector
from fastadv.models.identity import tensors_hash
from fastadv.studies.detection.attacks import (
    AttackedImages,
    Task,
    carry_out,
    class_goal,
    each_of,
    gallery_of,
    make,
    sources,
    wanted,
)
from fastadv.studies.detection.features import Features, scores_of
from fastadv.studies.detection.plan import people_of
from fastadv.studies.detection.setting import Clean, Setting, kind

CLASS, VERIFIER = GOALS = ("class", "verifier")
FAR = 1e-3
"""The false accept rate of a verifier's threshold where neither is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveGoal(ABC):
    """What an attack is to reach, for the images of one study.

    Attributes:
        setting: The study.
        clean: Its unchanged images.
    """

    name: ClassVar[str]
    setting: Setting
    clean: Clean

    def sources(self) -> list[str]:
        """The images to attack: those of the test that the network classifies rightly."""
        return sources(self.setting, self.clean, ("test",))

    def described(self) -> dict[str, float] | None:
        """The verifier's threshold and error rates; None without one."""
        return None

    @property
    def label(self) -> str:
        """A part of the names of runs, "" for a class."""
        return ""

    @property
    def run(self) -> Mapping[str, Any] | None:
        """What a run's description says of the goal; None for a class."""
        return None

    def claims(
        self, detector: Detector, names: Sequence[str], *, targeted: bool, natural: bool = False
    ) -> Tensor | None:
        """The places ``(N,)`` of the claimed identities among the detector's classes; None where none is claimed.

        Args:
            detector: Whose classes.
            names: Of images, or of the unchanged ones that they were made from.
            targeted: Whether attacked images are meant that have a target.
            natural: Whether unchanged images are meant, to compare these with.
        """
        return None

    def scores(self, detector: Detector, features: Features, *, targeted: bool, natural: bool = False) -> Tensor:
        """What the detector says of images ``(N,)``, with their claims."""
        return scores_of(detector, features, self.claims(detector, features.names, targeted=targeted, natural=natural))

    @abstractmethod
    def goal(self, names: Sequence[str], *, targeted: bool, on_logits: bool = True, further: int = 0) -> Goal:
        """The goal of all the images.

        Args:
            names: Of the images.
            targeted: Whether they have a target.
            on_logits: Whether the attack's paper moves on logits; else on embeddings.
            further: How many columns the attacked network's outputs have besides.
        """

    @abstractmethod
    def reaches(self, features: Features, *, targeted: bool, on_logits: bool = True) -> Tensor:
        """Which images reach the goal, ``(N,)`` bool, by the network's view of them in float32."""

    @abstractmethod
    def unaware(self, spec: AttackSpec, *, targeted: bool) -> AttackedImages:
        """The images of an attacker who does not know the detector."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReachClass(AdaptiveGoal):
    """Be taken for the target's class, or for another than the own one; the detector reads what the head chooses.

    The verdict is that of the class head, or, of an attack on embeddings, that of the nearest class mean.
    """

    name: ClassVar[str] = CLASS

    def goal(self, names: Sequence[str], *, targeted: bool, on_logits: bool = True, further: int = 0) -> Goal:
        if on_logits:
            return class_goal(self.setting, names, targeted)
        labels, gallery = wanted(self.setting, names, targeted), gallery_of(self.setting, self.clean)
        if not targeted:
            return GalleryClass(gallery=gallery, labels=labels, any_other=True)
        # a watched network embeds the guides itself: with its further column
        guides = [self.setting.source.load(self.setting.splits.guide(name)).image for name in names]
        return GalleryClass(gallery=gallery, labels=labels, guides=torch.stack(guides))

    def reaches(self, features: Features, *, targeted: bool, on_logits: bool = True) -> Tensor:
        labels = wanted(self.setting, features.names, targeted)
        said = features.predicted
        if not on_logits:
            gallery = gallery_of(self.setting, self.clean)
            said = gallery.vote(gallery.distances(features.embeddings.to(self.setting.model.device)), 1).cpu()
        return said == labels if targeted else said != labels

    def unaware(self, spec: AttackSpec, *, targeted: bool) -> AttackedImages:
        return make(self.setting, self.clean, spec, targeted=targeted, parts=("test",))


@dataclass(frozen=True, kw_only=True, eq=False)
class PassVerifier(AdaptiveGoal):
    r"""Be accepted as the target by a verifier, or be refused as oneself.

    A person's template is the mean of the unit embeddings of the images that represent the person, of length 1, and
    the verifier accepts a face with a cosine similarity of at least the threshold:

    .. math:: \langle F(x), t_{target} \rangle \ge \theta \qquad \text{or} \qquad \langle F(x), t_{own} \rangle < \theta

    Whom the image **claims** to show decides what a detector of the reading ``relative`` reads:

    - Impersonation (targeted): the target, so it reads the distances relative to the target.
    - Evasion (untargeted): nobody, as a person does who is searched for, on a watch list or for a second enrolment. It
      reads the class that the head chooses, as of every face without a claim. **choice**: not relative to the own
      identity, where other people, who are refused as that person, are flagged as well.

    Attributes:
        threshold: The verifier's, a cosine similarity.
        far: The share of the study's natural images that it accepts as another person, of all pairs of an image and
            another person's template.
        false_reject_rate: The share that it refuses as themselves.
        pairs: How many pairs with another person's template.
    """

    name: ClassVar[str] = VERIFIER
    threshold: float
    far: float
    false_reject_rate: float
    pairs: int

    @staticmethod
    def at(setting: Setting, clean: Clean, *, threshold: float | None = None, far: float | None = None) -> PassVerifier:
        """At a threshold, or at that of a false accept rate (default: ``FAR``) on the study's natural images.

        Raises:
            ValueError: The natural images are too few for the rate.
        """
        people = setting.splits.people
        similar = clean.natural.embeddings @ _templates(setting, clean).T
        own = setting.places(clean.natural.names)[:, None] == torch.arange(len(people))
        pairs = int((~own).sum())
        if threshold is None:
            far = FAR if far is None else far
            if not measurable(far, pairs):
                raise ArgumentError(
                    f"adaptive_far: expected a rate of at least {1 / pairs:.2g}, which {pairs:,} pairs of a natural "
                    f"image and another person's template can show, got {far:g}; give --adaptive-far or "
                    "--adaptive-threshold"
                )
            threshold = threshold_at_far(similar.flatten().numpy(), own.flatten().numpy(), far, single=True)
        return PassVerifier(
            setting=setting,
            clean=clean,
            threshold=threshold,
            far=float((similar[~own] >= threshold).double().mean()),
            false_reject_rate=float((similar[own] < threshold).double().mean()),
            pairs=pairs,
        )

    @cached_property
    def templates(self) -> Tensor:
        """``(P, D)`` float32 unit vectors, of the people in the study's order."""
        return _templates(self.setting, self.clean)

    def sources(self) -> list[str]:
        """Those that are accepted as themselves, and not as their target, before the attack."""
        before = self.clean.sources.of(super().sources())
        met = [self.reaches(before, targeted=targeted) for targeted in (True, False)]
        return list(before.take(~(met[0] | met[1])).names)

    def described(self) -> dict[str, float]:
        return {
            "threshold": self.threshold,
            "far": self.far,
            "false_reject_rate": self.false_reject_rate,
            "pairs": self.pairs,
        }

    @property
    def label(self) -> str:
        """With a digest: another threshold or other templates are another goal."""
        return f"-{VERIFIER}-{self._digest[:8]}"

    @property
    def run(self) -> Mapping[str, Any]:
        return {"name": VERIFIER, "threshold": self.threshold, "templates": self._digest}

    @cached_property
    def _digest(self) -> str:
        line = torch.tensor(self.threshold, dtype=torch.float64)
        return tensors_hash({"templates": self.templates, "threshold": line})

    def claims(
        self, detector: Detector, names: Sequence[str], *, targeted: bool, natural: bool = False
    ) -> Tensor | None:
        if not (targeted and detector.trajectory.relative):
            return None
        place = {name: k for k, name in enumerate(detector.trajectory.representatives.classes)}
        return torch.tensor([place[who] for who in self._people(names, targeted=not natural)], dtype=torch.int64)

    def goal(self, names: Sequence[str], *, targeted: bool, on_logits: bool = True, further: int = 0) -> Goal:
        compared = F.pad(self._compared(names, targeted=targeted), (0, further))
        if targeted:
            return Impersonate(compared, threshold=self.threshold)
        return Evade(references=compared, threshold=self.threshold)

    def reaches(self, features: Features, *, targeted: bool, on_logits: bool = True) -> Tensor:
        goal = self.goal(features.names, targeted=targeted)
        return goal.achieved(features.embeddings, Rows(reference=goal.references))

    def _compared(self, names: Sequence[str], *, targeted: bool) -> Tensor:
        place = {name: k for k, name in enumerate(self.setting.splits.people)}
        return self.templates[[place[who] for who in self._people(names, targeted=targeted)]]

    def _people(self, names: Sequence[str], *, targeted: bool) -> list[str]:
        """The target of each image, or who it shows."""
        return [self.setting.splits.targets[name] for name in names] if targeted else people_of(names)

    def unaware(self, spec: AttackSpec, *, targeted: bool) -> AttackedImages:
        names = tuple(self.sources())
        everything = self.goal(names, targeted=targeted)
        task = Task(
            label=f"{spec.label}-{kind(targeted)}{self.label}",
            spec=spec,
            targeted=targeted,
            names=names,
            goal_of=each_of(everything, names),
            model=self.setting.model,
            goal=self.run,
            reaches=lambda features: self.reaches(features, targeted=targeted),
        )
        return carry_out(self.setting, task)


def _templates(setting: Setting, clean: Clean) -> Tensor:
    """The unit means ``(P, D)`` of the people's images that represent them."""
    owner = setting.places(clean.rest.names)
    counts = owner.bincount(minlength=len(setting.splits.people)).tolist()
    means = [part.double().mean(0) for part in clean.rest.embeddings[owner.argsort(stable=True)].split(counts)]
    return F.normalize(torch.stack(means), dim=1).float()
