"""Weights that were trained to resist attacks, in place of the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastadv.defences.defended import Traits
from fastadv.models import FaceModel
from fastadv.models.checkpoints import load_weights, read_fitting_state
from fastadv.models.face_model import check_face_model, copy_of
from fastadv.models.state_fit import HEAD
from fastadv.models.zoo import class_head


@dataclass(frozen=True, kw_only=True)
class Retrained(Traits):
    """Other weights of the same architecture: a network after adversarial training.

    Source:
        Zhong and Deng 2020, table VI (lower part), "adversarial training". The weights are made by
        ``fastadv train --adversarial``.

    Attributes:
        file: A ``.safetensors``, ``.pt`` or ``.pth`` file with the parameter names of the model, as
            ``fastadv.training.save_weights`` writes them.
    """

    file: Path

    @property
    def name(self) -> str:
        """``"weights:robust/best"``: the file without its ending, and its folder."""
        return f"weights:{'/'.join(self.file.with_suffix('').parts[-2:])}"

    def wrap(self, model: FaceModel, *, seed: int = 0) -> FaceModel:
        """A copy of the model with the file's weights, and with the file's class head, or none.

        Args:
            model: Any ``FaceModel`` of the architecture, not prepared.
            seed: Nothing is drawn.

        Raises:
            TypeError: ``model`` is no ``FaceModel``.
            CheckpointError: The file is missing, broken, unsafe, or of another architecture.
        """
        check_face_model(model)
        source = str(self.file)
        made = copy_of(model)
        fitted = read_fitting_state(self.file, made.backbone)
        own = {k: v for k, v in fitted.state.items() if not k.startswith(HEAD)}
        load_weights(made.backbone, own, source=source, fitted=fitted)
        head = class_head(fitted, made, source=source)
        made.name = f"{model.name}+{self.name}"
        made.head = None if head is None else head.to(model.device).eval()
        return made
