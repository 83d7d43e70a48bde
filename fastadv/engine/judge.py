"""The verdict: each attacked image rounded to 8 bits, kept in its budget, and measured again in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import Budget, Goal, Rows
from fastadv.attacks.change import below_a_level, norms
from fastadv.attacks.goal import check_each
from fastadv.core.errors import ArgumentError
from fastadv.engine.carried import Carried, rows_of, together
from fastadv.engine.evaluate import fixed_outputs, layout_of
from fastadv.engine.heads import class_count
from fastadv.engine.job import InFlight, Job
from fastadv.engine.transfers import HostCopy, stacked, to_device
from fastadv.engine.verdict import Verdict
from fastadv.models import FaceModel, fixed_batches
from fastadv.models.float32_math import float32_math
from fastadv.surrogates import BoundSurrogate, Member

_SAME = 1e-6  # float32 noise on a grey level; anything real is 0.0039


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Measures clean and finished images with the float32 model in batches of a fixed shape.

    Attributes:
        model: The float32 model.
        surrogate: What the attack moves on: its networks embed the references too.
        goal: A goal of the run's kind.
        budget: The attack's budget.
        margin: The attack's: how much better than the threshold a success must be to count for it.
        batch: Images per forward pass.
        before_rounding: Measure success before rounding too.
    """

    model: FaceModel
    surrogate: BoundSurrogate
    goal: Goal
    budget: Budget
    margin: float
    batch: int
    before_rounding: bool

    def outputs(self, images: Tensor) -> Tensor:
        """Embeddings or logits of any number of images, with float32 products."""
        with float32_math(images.device, tf32=False):
            return fixed_outputs(self.model, self.goal, images, self.batch)

    def enter(self, jobs: list[Job], images: Tensor) -> list[InFlight]:
        """Embed references once, measure the clean images, and note the goals that are met already."""
        clean = self._clean(jobs, images)
        parts = [self._carried(k, jobs, images, clean) for k in range(len(self.goal.parts))]
        rows = together([Rows(reference=part.reference, label=part.label) for part in parts])
        kind, n = type(self.goal).__name__, len(jobs)
        scores = check_each(f"score of {kind}", self.goal.score(clean, rows), n)
        met = check_each(f"achieved of {kind}", self.goal.achieved(clean, rows), n)
        reached = self.goal.achieved(clean, rows, self.margin) if self.margin else met
        start = HostCopy(torch.stack([scores.double(), met.double(), reached.double()], 1))
        return [
            InFlight(
                job=job,
                image=images[i],
                parts=tuple(part.row(i) for part in parts),
                start=start,
                place=i,
                trial=images[i],
            )
            for i, job in enumerate(jobs)
        ]

    def _clean(self, jobs: list[Job], images: Tensor) -> Tensor:
        """The model's outputs for the clean images: the callers' where every job has one, else computed."""
        known = [job.known for job in jobs if job.known is not None]
        if len(known) < len(jobs):
            return self.outputs(images)
        return stacked([each.float() for each in known], images.device)

    def _carried(self, k: int, jobs: list[Job], images: Tensor, clean: Tensor) -> Carried:
        """What the part of number ``k`` has of each image."""
        compared = self._compared(k, jobs, images)
        reference = self._references(compared, images, clean)
        stochastic = self.surrogate.stochastic and compared is not None
        return Carried(
            reference=reference,
            others=() if stochastic or compared is None else self._by_others(compared),
            target=compared if stochastic else None,
            label=self._labels(k, jobs, clean),
        )

    def _compared(self, k: int, jobs: list[Job], images: Tensor) -> Tensor | None:
        """What the goals compare with: images ``(N, 3, H, W)``, features ``(N, D)``, or None."""
        part = self.goal.parts[k]
        if part.own_reference:
            return images
        if part.references is None:
            if part.by_templates and len(self.surrogate.members) > 1:
                raise ArgumentError(
                    "guides: expected images (N, 3, H, W) with an ensemble, whose further networks have no templates, "
                    "got None"
                )
            return None
        given = [job.goal.parts[k].references for job in jobs]
        every = to_device(torch.cat([g.detach() for g in given if g is not None]).float(), images.device)
        if every.dim() == 4:
            if every.shape[1:] != images.shape[1:]:
                raise ArgumentError(
                    f"goal: expected images {tuple(images.shape[1:])} like the model's, got {tuple(every.shape[1:])}"
                )
            layout = layout_of(images)
            return every if layout is torch.contiguous_format else every.contiguous(memory_format=layout)
        if self.surrogate.needs_images:
            raise ArgumentError(
                "goal: expected images (N, 3, H, W) to compare with, since the surrogate embeds them by its "
                f"own networks, got embeddings {tuple(every.shape)}"
            )
        return every

    def _references(self, compared: Tensor | None, images: Tensor, clean: Tensor) -> Tensor | None:
        """Unit embeddings, or a layer's features, by the attacked model itself."""
        if compared is None or compared is images:
            return None if compared is None else clean
        if compared.dim() == 4:
            return self.outputs(compared)
        if compared.shape[1] != clean.shape[1]:
            raise ArgumentError(
                f"goal: expected embeddings of {clean.shape[1]} numbers like the model's, got {compared.shape[1]}"
            )
        return torch.nn.functional.normalize(compared) if self.goal.output == "embedding" else compared

    def _by_others(self, images: Tensor) -> tuple[Tensor, ...]:
        """Unit embeddings by the ensemble's further networks, a tensor each."""
        layout = layout_of(images)

        def embedded(member: Member) -> Tensor:
            return fixed_batches(lambda part: member.model(part.contiguous(memory_format=layout)), images, self.batch)

        return tuple(embedded(member) for member in self.surrogate.members[1:])

    def _labels(self, k: int, jobs: list[Job], clean: Tensor) -> Tensor | None:
        given = [job.goal.parts[k].labels for job in jobs]
        if self.goal.parts[k].labels is None:
            return None
        label = torch.cat([each for each in given if each is not None])
        of_the_head = "logits" == self.goal.output == self.goal.parts[k].output  # claims are places elsewhere
        if of_the_head and int(label.max()) >= (classes := class_count(self.goal, clean)):
            raise ArgumentError(f"labels: expected numbers below the model's {classes} classes, got {int(label.max())}")
        return to_device(label.long(), clean.device)

    def measure(self, done: list[InFlight]) -> Verdict:
        """Round finished images and measure them; the host does not wait for it."""
        trial = torch.stack([d.trial for d in done])
        origin = torch.stack([d.image for d in done])
        rows = together([rows_of(each) for each in zip(*(d.parts for d in done), strict=True)])
        rounded = self.budget.round8(trial, origin)
        outputs = self.outputs(rounded)
        success = self.goal.achieved(outputs, rows)
        stuck = torch.zeros_like(success)
        if below_a_level(self.budget):
            stuck = ((rounded * 255).round() == (origin * 255).round()).flatten(1).all(1)
        linf, l2 = norms(rounded, origin, self.budget)
        before = {"success_float": self._before_rounding(trial, rounded, success, rows)} if self.before_rounding else {}
        return Verdict(
            done,
            rounded=rounded,
            embeddings=outputs if self.goal.output == "embedding" else None,
            columns={
                "success": success,
                **before,
                "linf": linf,
                "l2": l2,
                "score_after": self.goal.score(outputs, rows),
                "inside": self.budget.inside(rounded, origin),
                "stuck": stuck,
            },
            batch=self.batch,
        )

    def _before_rounding(self, trial: Tensor, rounded: Tensor, success: Tensor, rows: Rows) -> Tensor:
        """Success of the images as the attack left them."""
        same = (rounded - trial).abs().flatten(1).amax(1) <= _SAME
        if bool(same.all()):
            return success
        return torch.where(same, success, self.goal.achieved(self.outputs(trial), rows))
