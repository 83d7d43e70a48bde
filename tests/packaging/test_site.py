"""The check of the built site finds what a browser would load from elsewhere, and links that lead nowhere."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def problems(folder):
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.problems(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
        ('<img src="http://example/x.png"/>', "loads http://example/x.png"),
        ('<p style="background: url(https://example/x.png)">', "loads https://example/x.png"),
        ('<style>@import "https://example/x.css";</style>', "loads https://example/x.css"),
        ('<a href="gone.html">x</a>', "no such file: gone.html"),
        ('<a href="#gone">x</a>', "no such anchor: #gone"),
        ('<img src="gone.png">', "no such file: gone.png"),
    ],
)
def test_a_fault_of_a_page_is_one_line(tmp_path, text, told):
    (tmp_path / "index.html").write_text(text)
    assert set(problems(tmp_path)) == {f"index.html: {told}"}


def test_a_style_sheet_may_not_load_a_font_from_another_host(tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://fonts.example/a.woff2') }")
    assert problems(tmp_path) == ["a.css: loads https://fonts.example/a.woff2"]


def test_local_files_and_links_that_a_reader_follows_are_right(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="x">')
    (tmp_path / "index.html").write_text('<a href="b.html#x">b</a><a href="https://example.org/">elsewhere</a>')
    assert problems(tmp_path) == []
