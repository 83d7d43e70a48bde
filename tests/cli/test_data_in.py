"""What the commands say of data that cannot be right: one line and exit code 2 before any work, or a note."""

import numpy as np
import pytest
from PIL import Image

from fastadv.core.notices import Notice
from fastadv.data import LFW, IdentityFolder, SourceError
from fastadv.runs.attack import plan
from fastadv.runs.inputs import open_faces, open_pairs

POINTS = np.array([[107.6, 108.7], [146.5, 109.2], [127.3, 140.2], [110.6, 156.7], [143.5, 156.9]])


@pytest.fixture
def photographs(tmp_path):
    for k in range(4):
        for i in (1, 2):
            path = tmp_path / "faces" / f"p{k}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((250, 250, 3), 40 * k + i, np.uint8)).save(path)
    lines = [f"p{k}/1.png,p{k}\\2.png,1\n" for k in range(4)] + [f"p{k}/1,p{(k + 1) % 4}/2,0\n" for k in range(4)]
    (tmp_path / "pairs.csv").write_text("first,second,same\n" + "".join(lines))
    return tmp_path


def listed(photographs, points, people=4):
    numbers = " ".join(f"{v:.2f}" for v in points.ravel())
    path = photographs / "landmarks.txt"
    path.write_text("".join(f"p{k}/{i}.png {numbers}\n" for k in range(people) for i in (1, 2)))
    return path


COMMANDS = {
    "attack": ("--goal", "evade", "--threshold", "0.9", "--out"),
    "verify": ("--attack", "fgsm", "--out"),
    "talfw": ("--attack", "fgsm", "--out"),
    "defend": ("--attack", "fgsm", "--defence", "mean:3", "--out"),
    "identify": ("--attack", "fim", "--enrol", "1", "--out"),
    "train": ("--epochs", "1", "--out"),
}
WRONG = {
    "order": (POINTS[[0, 1, 2, 4, 3]], 4, "with the mouth corners exchanged"),
    "frame": (POINTS * 3, 4, "expected points inside of the picture of 250x250"),
    "no line": (POINTS, 3, "got none for p3/1"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_landmarks_are_refused_before_any_image_is_made(command, what, photographs, inside):
    points, people, message = WRONG[what]
    given = [command, *(("fim",) if command == "attack" else ()), "--model", "synth-mobile"]
    given += ["--data", photographs / "faces", "--landmarks", listed(photographs, points, people)]
    if command in ("verify", "talfw", "defend"):
        given += ["--pairs", photographs / "pairs.csv"]
    code, said = inside(*given, *COMMANDS[command], photographs / "run")
    assert (code, message in said) == (2, True), said
    assert not list((photographs / "run").rglob("*.png"))


def test_targets_are_looked_at_too(photographs):
    source = open_faces(photographs / "faces", size=112, landmarks=listed(photographs, POINTS, 3))
    with pytest.raises(ValueError, match="got none for p3/1, p3/2"):
        open_pairs(source, file=photographs / "pairs.csv")
    assert len(open_pairs(source, file=photographs / "pairs.csv", limit=2)) == 2  # of people who have lines
    (photographs / "one.csv").write_text("first,second,same\np0/1,p3/2,0\n")

    class Evasion:
        needs_target = True

    with pytest.raises(ValueError, match="got none for p3/2"):
        plan(source, Evasion(), pairs=photographs / "one.csv", limit=None)


def test_pairs_get_the_names_of_the_source(photographs):
    source = open_faces(photographs / "faces", size=250)
    assert {n for p in open_pairs(source, file=photographs / "pairs.csv") for n in (p.first, p.second)} == {
        *source.names
    }


def test_photographs_without_landmarks_are_verified_with_a_note(photographs):
    source = open_faces(photographs / "faces", size=112)
    with pytest.warns(Notice, match=r"no landmarks: the central square of each picture is used \(8 of 8"):
        open_pairs(source, file=photographs / "pairs.csv")


def test_what_open_faces_takes(photographs):
    assert isinstance(open_faces(photographs / "faces", size=112), IdentityFolder)
    (photographs / "faces").rename(photographs / "images")
    assert isinstance(open_faces(photographs, size=112), LFW)
    with pytest.raises(SourceError, match="got no such folder"):
        open_faces(photographs / "none", size=112)
