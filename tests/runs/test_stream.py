"""`fastadv.stream`: a folder of faces in, results out, resumed where it stopped."""

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import content
from torch import nn

import fastadv as fa
from fastadv import attacks
from fastadv.data import IdentityFolder, RunFolderError, read_manifest


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(7):
        path = tmp_path / "faces" / f"person{k % 3}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path)
    return IdentityFolder(tmp_path / "faces")


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 7, stride=7), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 16))
    return fa.FaceModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, name="small").eval()


@pytest.fixture
def goal_for(model):
    target = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(9))
    return lambda face: fa.Impersonate(target, threshold=0.99)


def test_every_face_comes_once_and_without_a_folder_nothing_is_written(folder, model, goal_for, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    results = list(fa.stream(attacks.pgd(steps=3), goal_for, model, folder, seed=4))
    assert sorted(r.name for r in results) == list(folder.names)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_finished_is_not_made_again_and_the_bytes_agree(folder, model, goal_for, tmp_path):
    attack, engine = attacks.pgd(steps=3), fa.Engine(slots=2, batch=2)
    whole = list(fa.stream(attack, goal_for, model, folder, out=tmp_path / "whole", seed=4, engine=engine))
    started = fa.stream(attack, goal_for, model, folder, out=tmp_path / "parts", seed=4, engine=engine)
    first = [next(started) for _ in range(3)]
    started.close()
    rest = list(fa.stream(attack, goal_for, model, folder, out=tmp_path / "parts", seed=4, engine=engine))
    assert len(rest) < len(whole)
    assert {r.name for r in first} | {r.name for r in rest} == {r.name for r in whole}
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert [r.name for r in read_manifest(tmp_path / "whole")] == list(folder.names)


def test_a_stream_that_goes_on_keeps_the_choices_that_it_began_with(folder, model, goal_for, tmp_path):
    attack = attacks.pgd(steps=3)
    list(fa.stream(attack, goal_for, model, folder, out=tmp_path / "whole", engine=fa.Engine(batch=2)))
    started = fa.stream(attack, goal_for, model, folder, out=tmp_path / "parts", engine=fa.Engine(batch=2))
    next(started)
    started.close()
    list(fa.stream(attack, goal_for, model, folder, out=tmp_path / "parts"))
    assert read_manifest(tmp_path / "whole") == read_manifest(tmp_path / "parts")


def test_another_model_in_the_same_folder_is_refused(folder, model, goal_for, tmp_path):
    list(fa.stream(attacks.fim(steps=1), goal_for, model, folder, out=tmp_path / "run"))
    with torch.no_grad():
        model.backbone[3].bias[0] += 1
    with pytest.raises(RunFolderError, match="holds another run; weights: expected sha256"):
        list(fa.stream(attacks.fim(steps=1), goal_for, model, folder, out=tmp_path / "run"))


def test_a_full_disk_is_named_and_loses_nothing(folder, model, goal_for, tmp_path, monkeypatch):
    from fastadv.data import RunFolder

    written = RunFolder.write
    calls = []

    def full(self, row, png):
        calls.append(row.name)
        if len(calls) > 3:
            raise OSError(28, "No space left on device", str(self.image_path(row.name)))
        written(self, row, png)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        list(fa.stream(attacks.fim(steps=1), goal_for, model, folder, out=tmp_path / "run"))
    monkeypatch.undo()
    assert len(list((tmp_path / "run").rglob("*.png"))) == 3
    rest = list(fa.stream(attacks.fim(steps=1), goal_for, model, folder, out=tmp_path / "run"))
    assert len(rest) == 4
