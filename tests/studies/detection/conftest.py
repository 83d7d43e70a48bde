"""A small study on synthetic faces, fitted once, and evaluated once."""

from dataclasses import dataclass

import pytest

from fastadv import load
from fastadv.attacks.spec import parse_attack
from fastadv.data import SyntheticFaces
from fastadv.detection import FitConfig
from fastadv.engine import Engine
from fastadv.studies.detection import evaluate as detect_evaluate
from fastadv.studies.detection import fit as detect
from fastadv.studies.detection.configurations import Configuration
from fastadv.studies.detection.evaluate import EvaluateConfig
from fastadv.studies.detection.plan import Splits
from fastadv.studies.detection.study import StudyConfig
from fastadv.training import HeadConfig

PEOPLE = SyntheticFaces(identities=8, per_identity=16, seed=3)  # the first people of the shipped head
CLASSES = tuple(f"s3-{k:06d}" for k in range(500))


@dataclass(frozen=True)
class Study:
    """How the tests' studies are made."""

    people: SyntheticFaces
    classes: tuple[str, ...]
    engine: Engine
    configurations: tuple[Configuration, ...]
    fitting: FitConfig

    def config(self, **more) -> StudyConfig:
        settings = {
            "attacks": (parse_attack("bim:4@8/255"), parse_attack("bim:2@12/255")),
            "natural": 10,  # with two people that validate: a threshold at 5 % false alarms needs 20 images
            "attacked": 3,
            "validate": 0.25,
            "test": 0.25,
            "controls": (),
            "outside": 0.0,
            "classes": self.classes,
            **more,
        }
        return StudyConfig(**settings)

    def splits(self) -> Splits:
        return self.config().split(self.people.names)

    def fit(self, path, model, *, source=None, configurations=None, fitting=None, head=None, progress=None, **more):
        return detect.fit_folder(
            self.config(**more),
            source or self.people,
            model,
            path=path,
            engine=self.engine.resolve(model),
            configurations=configurations or self.configurations,
            fitting=fitting or self.fitting,
            head=head or HeadConfig(epochs=40, lr=0.1),
            **({"progress": progress} if progress else {}),
        )


@pytest.fixture(scope="session")
def plan() -> Study:
    return Study(
        people=PEOPLE,
        classes=CLASSES,
        engine=Engine(batch=8),
        configurations=tuple(
            Configuration(network=n, representatives="medoid", metric="cosine") for n in ("lstm", "mlp")
        ),
        fitting=FitConfig(epochs=6, batch=32),
    )


@pytest.fixture(scope="session")
def model():
    return load("synth-vgg")


@pytest.fixture(scope="session")
def study(tmp_path_factory, plan, model):
    path = tmp_path_factory.mktemp("study") / "run"
    return path, plan.fit(path, model)


@pytest.fixture(scope="session")
def evaluate() -> EvaluateConfig:
    return EvaluateConfig(
        unseen=(parse_attack("fgsm@12/255"),), adaptive=(parse_attack("bim:4@8/255"),), weights=(5.0,), k=7
    )


@pytest.fixture(scope="session")
def evaluated(study, plan, model, evaluate):
    return detect_evaluate.evaluate_folder(study[0], plan.people, model, evaluate)
