"""Python in the documentation that is marked ```` ```python run ```` runs as it stands, page by page."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import fastadv as fa
from fastadv.core.extras import EXTRAS

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = re.compile(r"(?ms)^```python run\n(.*?)^```$")


def families():
    spec = importlib.util.spec_from_file_location("families", DOCS / "families.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FAMILIES = families()
PAGES = {p.name: RUN.findall(p.read_text(encoding="utf-8")) for p in sorted(DOCS.glob("*.md"))}
SNIPPETS = {
    **{name: "\n".join(snippets) for name, snippets in PAGES.items() if snippets},
    **{f"attacks/{f.key}": f.example for f in FAMILIES.FAMILIES},
}


@pytest.mark.parametrize("page", SNIPPETS)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[page], page, "exec"), {"__name__": "snippet"})


def test_every_attack_has_a_page_and_every_page_an_attack():
    keys = {FAMILIES.family_key(entry) for entry in fa.attacks.list()}
    assert keys == {family.key for family in FAMILIES.FAMILIES}


def test_every_example_runs_an_attack_of_its_page():
    for family in FAMILIES.FAMILIES:
        for name in re.findall(r'fa\.attack\("([^"]+)"', family.example):
            (entry,) = (e for e in fa.attacks.list() if e.name == name)
            assert (name, FAMILIES.family_key(entry)) == (name, family.key)


def test_the_page_on_installing_names_every_extra():
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in (*EXTRAS, "cupy-cuda12", "faiss-gpu") if f"`{extra}`" not in text] == []
