"""The classes of torchattacks 3.5 that both have: ``from fastadv.compat import torchattacks``.

The constructors take the same arguments, and ``atk(images, labels)`` gives images of the same shape on the model's
device. Other than there: an image is on the 8-bit grid and its success is judged there, nothing of it hangs on the
other images of the batch, and the model's weights get no gradients. C&W starts from ``c`` and searches no other
constant.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.attacks import APGD as _APGD
from fastadv.attacks import L2, CarliniWagner, ClassifyAs, Linf, Misclassify, Recipe, SignGradient
from fastadv.attacks import DeepFool as _DeepFool
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, check_type
from fastadv.core.files import write_atomically
from fastadv.engine import run
from fastadv.models import FaceModel, wrap
from fastadv.surrogates import InputDiversity, Surrogate, TranslationInvariant

__all__ = ["APGD", "BIM", "CW", "DIFGSM", "FFGSM", "FGSM", "MIFGSM", "PGD", "PGDL2", "TIFGSM", "VANILA", "DeepFool"]

Target = Callable[[Tensor, Tensor], Tensor]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    raise AttributeError(f"{name}: fastadv has no such class; of torchattacks' it has {', '.join(__all__)}")


class Attack:
    """What all classes share: modes, normalised inputs, and the call.

    Args:
        name: Of the class.
        model: A network from images in [0, 1] to logits, or a model of fastadv.
        recipe: How to move; None leaves images as they are.
        targets: Whether there is a targeted mode.
    """

    def __init__(self, name: str, model: nn.Module, recipe: Recipe | None, *, targets: bool = True) -> None:
        check_type("model", model, nn.Module, "a torch.nn.Module")
        self.attack, self.model, self.model_name = name, model, type(model).__name__
        self.recipe = recipe
        self.supported_mode = ["default", *(["targeted"] if targets else [])]
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.normalization_used: dict[str, Tensor] | None = None
        self._target: Target | None = None
        self.set_mode_default()

    def __repr__(self) -> str:
        return f"{self.attack}(model_name={self.model_name}, attack_mode={self.attack_mode}, recipe={self.recipe})"

    def set_mode_default(self) -> None:
        """Leave the class of the labels."""
        self.attack_mode, self.targeted, self._target = "default", False, None

    def set_mode_targeted_by_function(self, target_map_function: Target, quiet: bool = True) -> None:
        """Reach the classes ``target_map_function(images, labels)``."""
        self._set_targeted("targeted(custom)", target_map_function)

    def set_mode_targeted_by_label(self, quiet: bool = True) -> None:
        """Reach the classes of the labels."""
        self._set_targeted("targeted(label)", lambda images, labels: labels)

    def set_mode_targeted_random(self, quiet: bool = True) -> None:
        """Reach a class that is drawn for each image among those that are not its own."""
        self._set_targeted("targeted(random)", self._random_class)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = True) -> None:
        """Reach the class with the k-th smallest logit of each image."""
        check_least("kth_min", kth_min, 1)
        self._set_targeted("targeted(least-likely)", lambda images, _: self._logits(images).argsort(1)[:, kth_min - 1])

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Refused but for the defaults: a verdict holds for the network in evaluation mode.

        Raises:
            ValueError: A mode of training.
        """
        if model_training or batchnorm_training or dropout_training:
            raise ArgumentError("model_training: expected False, an attack in evaluation mode, got a training mode")

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take and give images that were normalised, ``(x - mean) / std``, for a model that takes them so."""
        self.normalization_used = {
            "mean": torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1),
            "std": torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1),
        }

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images ``(N, C, H, W)`` on the model's device.

        Args:
            images: ``(N, C, H, W)`` float32 in [0, 1], or normalised where :meth:`set_normalization_used` says so.
            labels: ``(N,)`` int64.

        Raises:
            TypeError, ValueError: As ``fastadv.run``; also where labels are missing.
        """
        images = images.detach().to(self.device)
        pixels = self._pixels(images)
        if self.recipe is None:
            return images.clone()
        if labels is None:
            raise ArgumentError("labels: expected the classes (N,) of the images, got None")
        was_training = self.model.training
        try:
            model, labels = self._wrapped(pixels), labels.detach().to(self.device)
            goal = Misclassify(labels) if self._target is None else ClassifyAs(self._target(images, labels))
            seed = int(torch.randint(1 << 62, ()))  # of torch.manual_seed, and another one every time
            made = run(self.recipe, goal, model, pixels, seed=seed).images.to(self.device)
        finally:
            self.model.train(was_training)
        if self.normalization_used is None:
            return made
        return (made - self._constant("mean")) / self._constant("std")

    def save(
        self,
        data_loader: Iterable[tuple[Tensor, Tensor]],
        save_path: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
    ) -> tuple[float, float, None] | None:
        """Attack every batch of a loader, and write the images once, whole or not at all, for ``torch.load``.

        Returns:
            With ``return_verbose`` the accuracy that is left in per cent, and the mean L2 norm of what succeeded.
        """
        held: dict[str, list[Tensor]] = {"adv_inputs": [], "labels": [], "preds": [], "clean_inputs": []}
        norms: list[Tensor] = []
        for images, labels in data_loader:
            made = self(images, labels)
            with torch.no_grad():
                found = self._logits(made).argmax(1).cpu()
            change = (self._pixels(made) - self._pixels(images.to(self.device))).flatten(1).norm(dim=1).cpu()
            norms.append(change[found != labels.cpu()])
            for name, value in zip(held, (self._pixels(made), labels, found, self._pixels(images)), strict=True):
                held[name].append(value.detach().cpu())
        joined = {name: torch.cat(parts) for name, parts in held.items()}
        left = 100 * float((joined["preds"] == joined["labels"]).float().mean())
        l2 = float(torch.cat(norms).mean()) if len(torch.cat(norms)) else 0.0
        kept = ("adv_inputs", "labels", *["preds"][:save_predictions], *["clean_inputs"][:save_clean_inputs])
        if save_path is not None:
            buffer = io.BytesIO()
            torch.save({name: joined[name] for name in kept}, buffer)
            write_atomically(Path(save_path), buffer.getvalue())
        if verbose:
            print(f"Robust accuracy: {left:.2f} %, L2: {l2:.5f}")
        return (left, l2, None) if return_verbose else None

    def _set_targeted(self, mode: str, target: Target) -> None:
        if "targeted" not in self.supported_mode:
            raise ArgumentError(f"mode: expected 'default', since {self.attack} has no targeted mode, got {mode!r}")
        self.attack_mode, self.targeted, self._target = mode, True, target

    def _constant(self, name: str) -> Tensor:
        assert self.normalization_used is not None
        return self.normalization_used[name].to(self.device)

    def _pixels(self, images: Tensor) -> Tensor:
        if self.normalization_used is None:
            return images
        return (images.to(self.device) * self._constant("std") + self._constant("mean")).clamp(0, 1)

    def _wrapped(self, pixels: Tensor) -> FaceModel:
        if isinstance(self.model, FaceModel):
            return self.model.eval()
        used = {} if self.normalization_used is None else self.normalization_used
        return wrap(self.model, input_size=tuple(pixels.shape[2:]), channels=pixels.shape[1], **used)  # type: ignore[arg-type]

    def _logits(self, images: Tensor) -> Tensor:
        pixels, was_training = self._pixels(images.to(self.device)), self.model.training
        try:
            with torch.no_grad():
                return self._wrapped(pixels).logits(pixels)
        finally:
            self.model.train(was_training)

    def _random_class(self, images: Tensor, labels: Tensor) -> Tensor:
        classes = self._logits(images[:1]).shape[1]
        return (labels + torch.randint(1, classes, labels.shape).to(labels.device)) % classes


class _Signs(Attack):
    """The sign-gradient family: steps of ``alpha`` within the ball."""

    def __init__(self, name: str, model: nn.Module, *, surrogate: Surrogate | None = None, **machine: Any) -> None:
        recipe = Recipe(SignGradient(name=name.lower(), **machine), surrogate=surrogate or Surrogate())
        super().__init__(name, model, recipe)


class VANILA(Attack):
    """The images as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__("VANILA", model, None, targets=False)


class FGSM(_Signs):
    """One signed step."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255) -> None:
        super().__init__("FGSM", model, budget=Linf(eps), steps=1, step_size=eps)


class FFGSM(_Signs):
    """A random start and one signed step of ``alpha``."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 10 / 255) -> None:
        super().__init__("FFGSM", model, budget=Linf(eps), steps=1, step_size=alpha, random_start=True)


class BIM(_Signs):
    """Iterated signed steps; ``steps=0`` takes ``min(255 eps + 4, 1.25 * 255 eps)`` of them."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        count = steps or int(min(eps * 255 + 4, 1.25 * eps * 255))
        super().__init__("BIM", model, budget=Linf(eps), steps=count, step_size=alpha)


class PGD(_Signs):
    """Iterated signed steps from a random start."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
    ) -> None:
        super().__init__("PGD", model, budget=Linf(eps), steps=steps, step_size=alpha, random_start=random_start)


class PGDL2(_Signs):
    """Steps of length ``alpha`` along the gradient, in the L2 ball; ``eps_for_division`` is not needed."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ) -> None:
        super().__init__("PGDL2", model, budget=L2(eps), steps=steps, step_size=alpha, random_start=random_start)


class MIFGSM(_Signs):
    """Signed steps along the gradient's momentum."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
    ) -> None:
        super().__init__("MIFGSM", model, budget=Linf(eps), steps=steps, step_size=alpha, momentum=decay)


class DIFGSM(_Signs):
    """MI-FGSM on images that are resized and padded at random."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
    ) -> None:
        machine = {"budget": Linf(eps), "steps": steps, "step_size": alpha, "momentum": decay}
        surrogate = Surrogate(diversity=_resized(resize_rate, diversity_prob))
        super().__init__("DIFGSM", model, surrogate=surrogate, random_start=random_start, **machine)


class TIFGSM(_Signs):
    """DI-FGSM whose gradient is smoothed."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        kernel_name: str = "gaussian",
        len_kernel: int = 15,
        nsig: float = 3,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
    ) -> None:
        # a Gaussian over `nsig` standard deviations to either side
        sigma = (len_kernel - 1) / 2 / nsig if kernel_name == "gaussian" else None
        smoothing = TranslationInvariant(size=len_kernel, kernel=kernel_name, sigma=sigma)
        machine = {"budget": Linf(eps), "steps": steps, "step_size": alpha, "momentum": decay}
        surrogate = Surrogate(diversity=_resized(resize_rate, diversity_prob), smoothing=smoothing)
        super().__init__("TIFGSM", model, surrogate=surrogate, random_start=random_start, **machine)


class CW(Attack):
    """C&W-L2 with the constant ``c`` and the confidence ``kappa``."""

    def __init__(self, model: nn.Module, c: float = 1, kappa: float = 0, steps: int = 50, lr: float = 0.01) -> None:
        machine = CarliniWagner(
            search_steps=1, inner_steps=steps, learning_rate=lr, initial_constant=float(c), confidence=float(kappa)
        )
        super().__init__("CW", model, Recipe(machine))


class DeepFool(Attack):
    """Steps to the nearest linearised border, in L2."""

    def __init__(self, model: nn.Module, steps: int = 50, overshoot: float = 0.02) -> None:
        super().__init__("DeepFool", model, Recipe(_DeepFool(steps=steps, overshoot=overshoot)), targets=False)


class APGD(Attack):
    """PGD whose step size adapts; ``seed`` is torch's, ``rho`` the paper's 0.75, ``eot_iter`` 1.

    Raises:
        ValueError: Another norm or loss, or another ``rho`` or ``eot_iter`` than those.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ) -> None:
        if norm not in ("Linf", "L2"):
            raise ArgumentError(f"norm: expected 'Linf' or 'L2', got {norm!r}")
        if (eot_iter, rho) != (1, 0.75):
            raise ArgumentError(f"eot_iter, rho: expected 1 and 0.75, got {eot_iter} and {rho}")
        budget = Linf(eps) if norm == "Linf" else L2(eps)
        machine = _APGD(budget=budget, steps=steps, restarts=n_restarts, loss=loss)
        super().__init__("APGD", model, Recipe(machine), targets=False)


def _resized(rate: float, probability: float) -> InputDiversity:
    """Resizing by a ratio between ``rate`` and 1, at a random place, and nothing else."""
    resize = (min(rate, 1.0), max(rate, 1.0))
    return InputDiversity(probability=probability, resize=resize, translate=0.0, rotate=0.0, scale=(1.0, 1.0))
