"""`fastadv train --adversarial`: what a user can get wrong, and a run."""

import json

import pytest

ROBUST = ("--loss", "softmax", "--batch", "6", "--epochs", "1", "--adversarial", "ffm@4/255")


def arguments(faces, out, *more, model="synth-shuffle"):
    return ("train", "--data", faces, "--model", model, "--out", out, *more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ("--adversarial", "cw"),
            "expected NAME[:STEPS][@EPS] with a name of fim, pgd, ffm, fgsm, got 'cw'",
        ),
        (("--adversarial", "fim:x"), "expected a whole number of at least 1 for the steps, got 'fim:x'"),
        (("--adversarial", "fim:0"), "expected a whole number of at least 1 for the steps, got 'fim:0'"),
        (("--adversarial", "ffm:3"), "steps: expected none, since ffm makes one step, got 3"),
        (("--adversarial", "fim@x"), "eps: expected a positive number such as 8/255 or 0.03, got 'x'"),
        (("--adversarial", "fim@2"), "eps: expected at most hi - lo = 1, got 2"),
        (
            ("--adversarial", "fim", "--adversarial-share", "2"),
            "expected a share of the batch in (0, 1], got 2.0",
        ),
        (("--adversarial-share", "0.5"), "--adversarial-share: expected --adversarial with it, got 0.5 alone"),
        (
            ("--adversarial", "pgd", "--loss", "triplet"),
            "adversarial: expected fim or ffm with the loss 'triplet', which has no classes",
        ),
        (("--adversarial", "fim", "--head"), "--adversarial: expected it without --head"),
        (("--fine-tune", "--head"), "--fine-tune: expected it without --head"),
        (("--loss", "keep"), "fine_tune: expected True (--fine-tune) with the loss 'keep'"),
        (("--fine-tune", "--weights", "none.pt"), "none.pt, which does not exist"),
    ],
)
def test_errors_of_a_user(more, words, faces, inside, tmp_path):
    code, said = inside(*arguments(faces, tmp_path / "out", *more))
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fine_tuning_needs_weights(faces, inside, tmp_path):
    code, said = inside(*arguments(faces, tmp_path / "out", "--fine-tune", model="mobilefacenet"))
    assert code == 2
    assert "weights: expected a file to fine-tune 'mobilefacenet' from, got none" in said


def test_a_run_of_aligned_crops_without_landmarks(faces, fastadv, inside, tmp_path):
    done = fastadv(*arguments(faces, tmp_path / "out", *ROBUST, "--fine-tune", "--json"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["adversarial"] == "ffm@4/255"
    assert summary["weights"].endswith("best.safetensors")
    code, said = inside(*arguments(faces, tmp_path / "out", *ROBUST, "--adversarial-share", "1", "--fine-tune"))
    assert code == 2
    assert "holds another training; adversarial" in said
