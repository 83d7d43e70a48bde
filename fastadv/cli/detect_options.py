"""The images of ``fastadv detect``, and which others are natural examples."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Option

from fastadv.cli.fields import Changed
from fastadv.cli.options import SYNTHETIC, InputOptions

if TYPE_CHECKING:
    from fastadv.data import FaceSource
    from fastadv.models import FaceModel
    from fastadv.studies.detection.controls import Control

CONTROLS = (
    "gaussian:SIGMA, signs:EPS, blur:SIGMA, jpeg:QUALITY, resize:RATIO, brightness:FACTOR, contrast:FACTOR or "
    "median:SIZE"
)  # of fastadv.studies.detection.controls, which a test compares
NETWORK = "Architecture of the network that is attacked and whose layers the detectors read."
StudyInput = Annotated[
    InputOptions,
    Changed(
        "data",
        "Read faces from a folder of identities, LFW, an InsightFace .bin, .tar shards, or generate them: 'synthetic'.",
    ),
    Changed("model", NETWORK),
]


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """Which faces of a folder, or which synthetic ones."""

    panel: ClassVar[str] = "Input"

    names: Annotated[
        Path | None, Option(help="Use only the images named in this text file, identity/file per line (default: all).")
    ] = None
    identities: Annotated[int, Option(min=3, help="With --data synthetic: number of people.")] = 100
    per_identity: Annotated[int, Option(min=1, help="With --data synthetic: images of each person.")] = 24
    faces_seed: Annotated[int, Option(min=0, help="With --data synthetic: random seed of the people.")] = 3

    @property
    def again(self) -> dict[str, object]:
        """The same faces, for the next command."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in vars(self).items() if value != usual[name]}

    def open(self, given: InputOptions, device: str, out: Path | None, **kept: Any) -> tuple[FaceSource, FaceModel]:
        """The faces, every one of them checked, and the network; what is found in photographs is kept in ``out``."""
        from fastadv.data import SyntheticFaces
        from fastadv.data.run_files import FOUND
        from fastadv.studies.detection import plan as detect_plan

        model = given.open_model(device)
        source: FaceSource
        if str(given.data) == SYNTHETIC:
            given.search(given.data, device)  # refuses --align
            source = SyntheticFaces(
                identities=self.identities,
                per_identity=self.per_identity,
                seed=self.faces_seed,
                size=model.input_size,
            )
        else:
            source = given.open_faces(model, device, kept=None if out is None else out / FOUND[0], **kept)
        if self.names is not None:
            source = detect_plan.Selection(source, detect_plan.read_names(self.names))
        source.check(source.names)
        return source, model


@dataclass(frozen=True, kw_only=True)
class NaturalOptions:
    """Natural images of other kinds."""

    panel: ClassVar[str] = "Natural images"

    control: Annotated[
        list[str] | None,
        Option(
            help=f"Take natural images with this change as natural examples: {CONTROLS}; may be given several times, "
            "or none (default: gaussian:3/255, gaussian:9/255, blur:1, blur:2.5, jpeg:75, jpeg:30, resize:0.5, "
            "resize:0.3, brightness:1.3, brightness:0.6, and signs of each attack's radius). Except with none, noise "
            "with the L2 norm of each attacked image's perturbation is added."
        ),
    ] = None
    also_natural: Annotated[
        list[Path] | None,
        Option(
            help="Take the aligned faces of this folder, of another source, as natural examples; may be given several "
            "times."
        ),
    ] = None
    outside: Annotated[
        float, Option(help="Leave this share of the people out of the classes; their images are natural examples.")
    ] = 0.15

    def controls(self) -> tuple[Control, ...] | None:
        """The controls, or None for the usual ones."""
        from fastadv.studies.detection.controls import parse_controls

        return parse_controls(self.control)

    @property
    def folders(self) -> tuple[str, ...]:
        """The further sources."""
        return tuple(str(folder) for folder in self.also_natural or ())
