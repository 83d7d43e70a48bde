"""README and docs: every link inside leads somewhere, and the picture of the layout has the floors of the package."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ +(.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_inside_lead_somewhere(page):
    broken = []
    for link in LINK.findall(re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_link_check_can_fail(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# One heading, `two`\n[x](b.md) [y](#one-heading-two)\n")
    assert anchors(page) == {"one-heading-two"}
    with pytest.raises(AssertionError, match=r"b\.md"):
        test_links_inside_lead_somewhere(page)


def assigned(path: Path, name: str) -> object:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    value = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)
    return ast.literal_eval(value)


def test_the_picture_of_the_layout_has_the_floors_that_the_layering_test_enforces():
    layers = [{name.removeprefix("fastadv.") for name in names} for names in assigned(LAYERING, "LAYERS")]
    floors = [{name.replace("/", ".") for name in names} for names, _ in assigned(DRAWING, "FLOORS")]
    small = {"__main__", "_native", "_version", "backends"}
    assert floors == [names - small for names in layers if names - small]
    svg = (ROOT / "docs" / "layout.svg").read_text(encoding="utf-8")
    assert "<svg" in svg


LAYERING = ROOT / "tests" / "layering" / "test_layers.py"
DRAWING = ROOT / "docs" / "draw_layout.py"
