"""What a run wants of every face: the goals of the command line, and the people whom a gallery knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastadv import attacks
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.data import Face, FaceSource
from fastadv.models import FaceModel
from fastadv.models.outputs import at_layer, output_of
from fastadv.runs.learned import Learned
from fastadv.runs.production import GoalOf, Order

VERIFIED = ("evade", "impersonate")
IDENTIFIED = ("identify-as", "misidentify")
CLASSIFIED = ("classify-as", "misclassify")
_BY_EMBEDDING = ("evade", "impersonate", "identify-as")  # whose targets may be embeddings
GOALS = (*VERIFIED, "match", *IDENTIFIED, *CLASSIFIED)

COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attack": GOALS,
        "verify": VERIFIED,
        "identify": IDENTIFIED,
        "talfw": VERIFIED,
        "defend": VERIFIED,
        "transfer": ("impersonate", "classify-as"),
        "detect": (*IDENTIFIED, *CLASSIFIED),
    }
)
"""The goals that each command gives to attacks: that of the user's choice, or all that it uses."""


def goals_of(recipe: attacks.Recipe) -> tuple[str, ...]:
    """The goals that an attack can move towards: the one place that says which combinations make sense.

    An attack moves along the gradient of whatever loss its goal has, so that most take them all. kNN-guided deep
    features stop by the templates of a gallery; the difference of logits ratio is a ratio of logits.
    """
    attack = attacks.check_recipe(recipe).attack
    if getattr(attack, "logits_only", False):
        return CLASSIFIED
    return IDENTIFIED if attack.name in attacks.CATALOG and attacks.CATALOG[attack.name].level == "gallery" else GOALS


def check_goal(recipe: attacks.Recipe, goal: str, argument: str = "attack") -> None:
    """Refuse an attack that cannot move towards a goal, before anything is generated.

    Args:
        recipe: The attack.
        goal: One of ``GOALS``.
        argument: What the message calls the attack.

    Raises:
        ValueError: It cannot.
    """
    possible = goals_of(recipe)
    if goal not in possible:
        raise ArgumentError(
            f"{argument}: expected one that can move towards the goal {goal}, got {recipe.name}, whose goal is "
            f"{' or '.join(possible)}"
        )


def identity_of(name: str) -> str:
    """Who is on an image: ``"person"`` of ``"person/file"``."""
    return name.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Enrolled:
    """People who can be identified.

    Attributes:
        people: Their names; class k of the gallery is ``people[k]``.
        gallery: One template for each.
    """

    people: tuple[str, ...]
    gallery: attacks.Gallery

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {person: k for k, person in enumerate(self.people)}

    def __contains__(self, person: str) -> bool:
        return person in self._classes

    def label(self, name: str) -> Tensor:
        """The class ``(1,)`` of who is on an image.

        Raises:
            KeyError: The gallery does not know them.
        """
        return torch.tensor([self._classes[identity_of(name)]])


@dataclass(frozen=True, kw_only=True)
class GoalChoice:
    """The goal of every face of a run, but for the faces.

    ============== =============================================================================== =================
    goal           what is wanted                                                                  needs
    ============== =============================================================================== =================
    evade          not to be taken for the target, or without one for itself (``Evade``)           threshold
    impersonate    to be taken for the target (``Impersonate``)                                    threshold
    the same two   likewise, of the pair as two classes (``PairClassifier``)                       max_distance too
    match          to have the target's features at a layer (``MatchFeatures``)                    threshold
    identify-as    to be nearest to the target's template, moving to its image (``GalleryClass``)  gallery
    misidentify    to be nearest to any template but the own one, moving to the nearest other one  gallery
    classify-as    to be given the class that the network gives to the target (``ClassifyAs``)     class head
    misclassify    to be given another class than the clean image's (``Misclassify``)              class head
    ============== =============================================================================== =================

    Attributes:
        goal: One of ``GOALS``.
        threshold: The verifier's, in the unit of ``metric``; of match at a layer the largest distance of its features
            that counts.
        metric: ``"cosine"`` or ``"euclidean"``: what the threshold is, and how a template is nearest.
        layer: Of match: a submodule of the backbone; None takes the embedding.
        neighbours: Of the goals of a gallery: how many of the nearest templates vote.
        max_distance: Of the goals of a verifier: move on the probability that a pair is of one person, 0 at this
            Euclidean distance (``PairClassifier``); None: on the distance itself.

    Raises:
        ValueError: A field is wrong, or missing, or of another goal.
    """

    goal: str
    threshold: float | None = None
    metric: str = "cosine"
    layer: str | None = None
    neighbours: int | None = None
    max_distance: float | None = None

    def __post_init__(self) -> None:
        check_one_of("goal", self.goal, GOALS)
        if self.max_distance is not None and self.goal not in VERIFIED:
            raise ArgumentError(
                f"max_distance: expected it with the goals {' and '.join(VERIFIED)} only, got {self.max_distance:g} "
                f"with {self.goal}"
            )
        if self.layer is not None and self.goal != "match":
            raise ArgumentError(f"layer: expected it with the goal match only, got {self.layer!r} with {self.goal}")
        if self.neighbours is not None and not self.needs_gallery:
            raise ArgumentError(
                f"neighbours: expected it with the goals {' and '.join(IDENTIFIED)} only, got {self.neighbours} with "
                f"{self.goal}"
            )
        if self.neighbours is not None and self.neighbours < 1:
            raise ArgumentError(f"neighbours: expected at least 1, got {self.neighbours}")
        if self.needs_gallery:
            if self.threshold is not None:
                raise ArgumentError(
                    f"threshold: expected none for {self.goal}, decided by the nearest template, got {self.threshold}"
                )
            attacks.Evade(threshold=0.0, metric=self.metric)  # checks the metric
            return
        if self.goal in CLASSIFIED:
            if self.threshold is not None:
                raise ArgumentError(
                    f"threshold: expected none for {self.goal}, decided by the largest logit, got {self.threshold}"
                )
            return
        if self.threshold is None:
            unit = "the largest distance of the layer's features" if self.layer else "the verifier's threshold"
            hint = "" if self.layer else "; give --threshold (threshold=), which 'fastadv verify' measures"
            raise ArgumentError(f"threshold: expected {unit} for {self.goal}, got none{hint}")
        if self.layer is None:
            attacks.Evade(threshold=self.threshold, metric=self.metric)  # checks both
            if self.max_distance is not None:
                self._of_pair(torch.zeros(1, 3, 1, 1))  # checks the distances
        else:
            attacks.MatchFeatures(torch.zeros(1, 1), layer=self.layer, threshold=self.threshold)

    @property
    def needs_gallery(self) -> bool:
        """Whether the people must be enrolled."""
        return self.goal in IDENTIFIED

    @property
    def needs_target(self) -> bool:
        """Whether every face needs another one to go for."""
        return self.goal not in ("evade", "misclassify", "misidentify")

    @property
    def aimed(self) -> bool:
        """Whether a certain person is to be reached, rather than anybody else."""
        return self.goal in ("impersonate", "match", "identify-as", "classify-as")

    def check_attack(self, recipe: attacks.Recipe) -> None:
        """Refuse an attack that cannot move towards the goal, before anything is generated.

        Raises:
            ValueError: As ``check_goal``.
        """
        check_goal(recipe, self.goal)

    def check_guides(self, recipe: attacks.Recipe, orders: Iterable[Order]) -> None:
        """Refuse an ensemble that would have no image to move to, before anything is made.

        Raises:
            ArgumentError: The goal is ``misidentify``, the attack moves on several networks, an order has no target.
        """
        ensemble = recipe.surrogate.ensemble is not None
        if self.goal == "misidentify" and ensemble and not all(order.target for order in orders):
            raise ArgumentError(
                "goal: expected identify-as with an ensemble, whose further networks have no templates to move to, got "
                "misidentify; give pairs, whose second images are its guides"
            )

    def check_model(self, model: FaceModel) -> None:
        """Refuse a network without the layer or the head, before anything is made.

        Raises:
            ValueError: It has no layer of the name, or none that ``match`` can take, or no class head.
        """
        if self.goal in CLASSIFIED and model.head is None:
            raise ArgumentError(
                f"goal: expected a network with a class head for {self.goal}, got {model.name}, whose weights have "
                f"none; use {' or '.join(IDENTIFIED)}, which compare templates"
            )
        if self.layer is not None:
            with torch.no_grad():
                output_of(model, at_layer(self.layer), torch.full((1, *model.image_shape), 0.5, device=model.device))

    def check_people(self, orders: Iterable[Order], names: Iterable[str]) -> None:
        """Refuse a gallery of the named images that lacks somebody, before anything is made.

        Raises:
            ValueError: It does, or it has fewer people than neighbours.
        """
        if not self.needs_gallery:
            return
        people = {identity_of(name) for name in names}
        wanted = {identity_of(o.target if self.aimed else o.source) for o in orders}
        missing = sorted(wanted - people)
        if missing:
            more = ", ..." if len(missing) > 5 else ""
            raise ArgumentError(
                f"gallery: expected images of every person that the goals name, got none of {len(missing)}: "
                f"{', '.join(missing[:5])}{more}"
            )
        if (self.neighbours or 1) > len(people):
            raise ArgumentError(f"neighbours: expected at most the {len(people)} templates, got {self.neighbours}")

    def describe(self) -> dict[str, Any]:
        """What a run's configuration says of it: what is set."""
        named = ("goal", "threshold", "layer", "neighbours", "max_distance")
        found = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return found if self.layer or self.goal in CLASSIFIED else {**found, "metric": self.metric}

    def learns(
        self, source: FaceSource, model: FaceModel, recipe: attacks.Recipe, orders: Iterable[Order]
    ) -> Learned | None:
        """What the goals take of the network, computed once for each face; None where they take images, or nothing."""
        if self.goal in CLASSIFIED:
            return Learned(source, model, "logits")
        targets = self.goal in _BY_EMBEDDING and any(order.target for order in orders)
        return Learned(source, model, "embedding") if targets and not recipe.surrogate.needs_images else None

    def goals(
        self,
        source: FaceSource,
        model: FaceModel,
        enrolled: Enrolled | None = None,
        *,
        ensemble: bool = False,
        learned: Mapping[str, Tensor] | None = None,
    ) -> GoalOf:
        """The goal of each order, with targets loaded as they are needed.

        Args:
            source: Where the targets are.
            model: The network, whose own classes count where it is to classify.
            enrolled: The people, for the goals that need a gallery.
            ensemble: Whether the attack moves on several networks: misidentify is then guided by the target's image.
            learned: What ``learns`` gave, of the faces and targets that are asked for; None: the targets' images.

        Raises:
            ValueError: The goal needs a gallery, and there is none.
        """
        if self.needs_gallery and enrolled is None:
            raise ArgumentError(f"enrolled: expected templates of the people for {self.goal}, got none")

        def goal_of(order: Order, face: Face) -> attacks.Goal:
            target = None
            if order.target:
                target = (source.load(order.target).image if learned is None else learned[order.target])[None]
            if target is None and self.needs_target:
                raise ArgumentError(f"target: expected an image for the goal {self.goal}, got none for {order.name}")
            if self.needs_gallery and enrolled is not None:  # so it is, see above
                return self._by_gallery(order, target if self.aimed or ensemble else None, enrolled)
            if self.goal == "misclassify":
                said = _said(model, face.image[None]) if learned is None else learned[face.name][None]
                return attacks.Misclassify(said.argmax(1))
            if self.goal == "classify-as":
                assert target is not None
                return attacks.ClassifyAs((_said(model, target) if learned is None else target).argmax(1))
            assert self.threshold is not None
            if self.max_distance is not None:
                own = face.image[None] if learned is None else learned[face.name][None]
                return self._of_pair(own if target is None else target)
            if self.goal == "evade":
                return attacks.Evade(references=target, threshold=self.threshold, metric=self.metric)
            assert target is not None
            if self.goal == "impersonate":
                return attacks.Impersonate(target, threshold=self.threshold, metric=self.metric)
            return attacks.MatchFeatures(target, layer=self.layer, threshold=self._distance)

        return goal_of

    def _by_gallery(self, order: Order, target: Tensor | None, enrolled: Enrolled) -> attacks.GalleryClass:
        other = self.goal == "misidentify"
        return attacks.GalleryClass(
            gallery=enrolled.gallery,
            labels=enrolled.label(order.source if other else order.target),
            any_other=other,
            guides=target,
            k=self.neighbours or 1,
        )

    def _of_pair(self, target: Tensor) -> attacks.PairClassifier:
        assert self.max_distance is not None
        wanted = "same" if self.aimed else "different"
        return attacks.PairClassifier(
            references=target, threshold=self._distance, max_distance=self.max_distance, wanted=wanted
        )

    @property
    def _distance(self) -> float:
        """The threshold as a distance of features: of unit embeddings ``d = sqrt(2 - 2 cosine)``."""
        assert self.threshold is not None
        if self.layer is not None or self.metric == "euclidean":
            return self.threshold
        return math.sqrt(max(0.0, 2 - 2 * self.threshold))


def _said(model: FaceModel, image: Tensor) -> Tensor:
    """The logits ``(1, K)`` of an image ``(1, 3, H, W)``."""
    with torch.no_grad():
        return model.logits(image.to(model.device)).cpu()
