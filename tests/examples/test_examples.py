"""Every script under `examples/` runs and prints what it is about, and the page that shows it agrees with it."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "examples.md"
LINES = 40

if not EXAMPLES.is_dir():
    pytest.skip("there is no folder examples/ beside tests/", allow_module_level=True)


@pytest.fixture
def printed(capfd, tmp_path, monkeypatch):
    """Run a script as `python NAME` does, in an empty folder: what it prints. A warning is an error in every test."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        said = capfd.readouterr()
        assert said.err == ""
        return said.out

    return run


def numbers(text, pattern):
    """The groups of the only match, as integers."""
    (found,) = re.findall(pattern, text)
    return [int(n) for n in (found if isinstance(found, tuple) else (found,))]


def test_attack_classifier_succeeds_more_often_with_a_larger_radius(printed):
    said = printed("attack_classifier.py")
    faces, of = numbers(said, r"without an attack: (\d+) of (\d+) faces")
    assert faces > 0.9 * of
    at = [numbers(said, rf"eps {eps}/255: Adversarials\({faces} images, (\d+) succeeded")[0] for eps in (1, 2, 4)]
    assert at == sorted(at)
    assert at[0] < at[2]
    assert at[2] > faces / 2


def test_impersonate_reaches_the_targets_and_saves_the_images(printed, tmp_path):
    said = printed("impersonate.py")
    images, reached = numbers(said, r"Adversarials\((\d+) images, (\d+) succeeded")
    assert reached > images / 2
    before, after = map(float, re.findall(r"target: (\S+) before, (\S+) after", said)[0])
    assert before < 0.46 < after
    assert len(list((tmp_path / "impersonation").glob("*.png"))) == images
    assert len((tmp_path / "impersonation" / "results.csv").read_text().splitlines()) == images + 1


def test_transfer_succeeds_on_the_surrogate_and_on_some_faces_of_the_target(printed):
    said = printed("transfer.py")
    images, clean = numbers(said, r"of (\d+) faces: synth-mobile refuses (\d+)")
    rows = re.findall(r"(\S+): synth-vgg refuses (\d+), synth-mobile refuses (\d+)", said)
    assert [name for name, _, _ in rows] == ["fim", "dfanet-fim", "dfanet-di-m-fim"]
    for _, here, there in rows:
        assert int(here) > 0.9 * images
        assert clean < int(there)


def test_minimal_norms_finds_the_norms_that_each_attack_minimises(printed):
    rows = re.findall(r"(?m)^(\S+) +(\d+) of (\d+) +(\S+) +(\S+) +(\d+)$", printed("minimal_norms.py"))
    assert [row[0] for row in rows] == ["deepfool", "cw-l2", "minimal-fim"]
    assert all(int(found) > 0.8 * int(of) for _, found, of, *_ in rows)
    l2 = {name: float(norm) for name, _, _, norm, _, _ in rows}
    linf = {name: float(norm) for name, _, _, _, norm, _ in rows}
    assert max(l2["deepfool"], l2["cw-l2"]) < l2["minimal-fim"]
    assert linf["minimal-fim"] < min(linf["deepfool"], linf["cw-l2"])


def test_detector_separates_attacked_from_natural_faces_of_other_persons(printed, tmp_path):
    said = printed("detector.py")
    assert float(re.findall(r"AUC on persons not seen: (\S+)", said)[0]) > 0.8
    hits, attacked = numbers(said, r"flagged: (\d+) of (\d+) adversarial")
    alarms, natural = numbers(said, r"(\d+) of (\d+) natural ones")
    assert hits / attacked > 0.5 > alarms / natural
    assert (tmp_path / "detector.safetensors").is_file()


def test_guard_service_flags_the_attacked_face(printed):
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra `serve`")
    scores = dict(re.findall(r"(natural|attacked): flagged \S+, p-value \S+, score (\S+)", printed("guard_service.py")))
    assert float(scores["natural"]) < float(scores["attacked"])


def test_defend_is_worse_for_the_defender_where_the_attacker_knows_the_defence(printed):
    said = printed("defend.py")
    rows = re.findall(r"(\S+) \{'no attack': (\d+), 'zero knowledge': (\d+), 'perfect knowledge': (\d+)\}", said)
    assert [name for name, *_ in rows] == ["synth-mobile+mean3", "synth-mobile+jpeg20"]
    clean, unaware, aware = (sum(int(row[i]) for row in rows) for i in (1, 2, 3))
    assert clean < unaware <= aware


def test_own_attack_succeeds_about_as_often_as_pgd(printed):
    rows = re.findall(r"(\S+): Adversarials\((\d+) images, (\d+) succeeded, median L∞ 3/255", printed("own_attack.py"))
    (mine, images, own), (other, _, pgd) = rows
    assert (mine, other) == ("cosine-steps", "pgd")
    assert int(own) > 0
    assert abs(int(own) - int(pgd)) <= int(images) / 4


SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_has_a_test(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= LINES
    assert f'printed("{name}")' in Path(__file__).read_text(encoding="utf-8")


def shown(page):
    """The Python blocks of a page, by the script that the heading above them names."""
    sections = re.split(r"(?m)^## ", page)[1:]
    blocks = {s.split("\n", 1)[0].strip(): re.findall(r"(?s)```python\n(.*?)```", s) for s in sections}
    return {name: found for name, found in blocks.items() if name.endswith(".py")}


def missing(block, script):
    """The first line of the block that the script does not have, or has only above the ones before it; else None."""
    lines = iter(script.splitlines())
    return next((line for line in filter(None, block.splitlines()) if line not in lines), None)


@pytest.mark.skipif(not PAGE.is_file(), reason="there is no docs/examples.md beside tests/")
def test_the_page_shows_every_script_as_it_is():
    blocks = shown(PAGE.read_text(encoding="utf-8"))
    assert sorted(blocks) == SCRIPTS
    for name, (block,) in blocks.items():
        assert missing(block, (EXAMPLES / name).read_text(encoding="utf-8")) is None, name


def test_the_comparison_with_the_page_can_fail():
    assert shown("# Examples\n\n## a.py\n\n```python\nx\n```\n\n## Limitations\n") == {"a.py": ["x\n"]}
    assert missing("a\nc\n", "a\nb\nc\n") is None
    assert missing("c\na\n", "a\nb\nc\n") == "a"
    assert missing("  a\n", "a\n") == "  a"
