"""The page: it needs nothing from outside, escapes everything, and shows the numbers that it was given."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.core import text
from fastadv.report import parts, svg
from fastadv.report.figures import roc_plot, similarity_plot, ticks_plot
from fastadv.report.page import amplified, data_uri, render_page
from fastadv.report.roc import Curve

EVIL = "<script>alert(1)</script>\"'&"
FACE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
LIGHT = ("--ink", "--muted", "--line")
DRAWN = (svg.INK, svg.MUTED, svg.LINE, *svg.COLOURS)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """Every element must be closed in its place; collects attributes, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


def plots() -> tuple[parts.Plot, ...]:
    curves = [
        Curve(label="clean", far=[0, 0, 1], tar=[0, 0.9, 1]),
        Curve(label=EVIL, far=[0, 0.5, 1], tar=[0, 0.1, 1], after=True),
    ]
    before, same = np.random.default_rng(1).normal(size=40), np.arange(40) < 20
    return (
        roc_plot(curves, negatives=20),
        roc_plot(curves, negatives=5000),
        similarity_plot(EVIL, before, -before, same, threshold=0.1, span=(-3, 3)),
        similarity_plot("one row", before, None, same, threshold=None, span=(-3, 3)),
        ticks_plot([1, 1, 2, 7], title="ticks"),
    )


def page() -> parts.Page:
    picture = parts.Picture(image=FACE, alt=EVIL)
    shots = (parts.Shot(title=EVIL, pictures=(picture, picture), lines=(EVIL,), verdict=EVIL, tone="bad"),)
    card = parts.Card(title=EVIL, note=EVIL, shots=shots)
    return parts.Page(
        title=EVIL,
        lead=EVIL,
        footer=EVIL,
        sections=(
            parts.Section(
                title=EVIL,
                lead=EVIL,
                parts=(
                    parts.Tiles(tiles=(parts.Tile(value="98.3 %", label=EVIL, note=EVIL),)),
                    parts.Table(header=("", EVIL), rows=((EVIL, "12.5 %"), ("row", "7")), note=EVIL),
                    parts.Plots(plots=plots()),
                    parts.CardGallery(cards=(card, card), wide=True),
                    parts.CardGallery(cards=(card,)),
                    parts.Notices(lines=(EVIL,)),
                    parts.Commands(commands=((EVIL, "fastadv --x '<y>'"),)),
                    parts.Facts(title=EVIL, facts=((EVIL, EVIL),)),
                ),
            ),
            parts.Section(title="left out, for it is empty"),
        ),
    )


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(page())


def test_it_is_whole_html(html: str) -> None:
    parsed = Parsed(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(parsed.tags) > 50
    assert "left out" not in html


def test_it_asks_for_nothing_from_outside(html: str) -> None:
    parsed = Parsed(html)
    addresses = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(value.startswith(("data:image/", "#")) for value in addresses)
    assert "://" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    assert "url(" not in html
    policy = [v for t, n, v in parsed.attributes if t == "meta" and n == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_everything_is_escaped(html: str) -> None:
    parsed = Parsed(html)
    assert "<script" not in html
    assert parsed.words.count(EVIL) >= 15
    alts = {value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt")}
    assert EVIL in alts
    assert alts == {EVIL, *(plot.alt or plot.title for plot in plots())}
    assert "fastadv --x '<y>'" in parsed.words
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_the_same_page_gives_the_same_bytes(html: str) -> None:
    assert render_page(page()) == html
    assert re.search(r"20\d\d-\d\d-\d\d", html) is None


def test_light_and_dark_and_the_phone(html: str) -> None:
    assert "@media (prefers-color-scheme: dark)" in html
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    light, dark = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    names = set(re.findall(r"(--[a-z0-9]+):", light))
    assert names == set(re.findall(r"(--[a-z0-9]+):", dark))
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", html)) - {"--k"} <= names
    assert {svg.INK, svg.MUTED, svg.LINE} == {re.search(rf"{name}: (#\w+)", light)[1] for name in LIGHT}
    for drawing in figures(html):  # no colour but the page's own
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= {"#000000", "#ffffff", *DRAWN}


def figures(html: str) -> list[str]:
    """The SVG files that the page shows."""
    found = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="[^"]', html)
    return [base64.b64decode(data).decode() for data in found]


def test_figures_are_files_of_their_own(html: str) -> None:
    assert figures(html) == [plot.svg for plot in plots()]
    assert "<svg" not in html
    assert plots()[0].alt == f"ROC curves: clean, {EVIL}"


def inverted(colour: str) -> str:
    """What the style sheet makes of a figure's colour in the dark: `invert(1) hue-rotate(180deg)` of CSS filters."""
    rotated = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
    seen = np.clip(rotated @ [255 - int(colour[i : i + 2], 16) for i in (1, 3, 5)], 0, 255)
    return "#" + "".join(f"{round(value):02x}" for value in seen)


def contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read(html: str) -> None:
    """WCAG: 4.5 for text, 3 for the lines of figures, on both grounds of both themes."""
    assert "{ filter: invert(1) hue-rotate(180deg); }" in html
    for theme, seen in zip(re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL), (str, inverted), strict=True):
        colours = dict(re.findall(r"(--[a-z0-9]+): (#[0-9a-f]{6})", theme))
        for ground in (colours["--bg"], colours["--panel"]):
            for name in ("--ink", "--muted", "--good", "--bad"):
                assert contrast(colours[name], ground) >= 4.5, (name, ground)
            for text_colour in (svg.INK, svg.MUTED):
                assert contrast(seen(text_colour), ground) >= 4.5, (text_colour, ground)
            for line in (*svg.COLOURS, colours["--notice"]):
                assert contrast(line if line == colours["--notice"] else seen(line), ground) >= 3, (line, ground)


def test_images_are_inside_without_loss(html: str) -> None:
    uris = re.findall(r'src="data:image/(webp|png);base64,([^"]+)"', html)
    assert len(uris) == 6
    with Image.open(io.BytesIO(base64.b64decode(uris[0][1]))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), FACE)
    assert 'width="10" height="12"' in html


def test_png_where_there_is_no_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastadv.report.page.features.check", lambda _: False)
    head, _, data = data_uri(FACE).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        np.testing.assert_array_equal(np.asarray(image), FACE)


def test_the_difference_is_amplified_around_grey() -> None:
    original = np.full((1, 2, 3), 100, np.uint8)
    changed = np.array([[[100, 101, 99], [108, 92, 200]]], np.uint8)
    assert amplified(original, changed, 15).tolist() == [[[128, 143, 113], [248, 8, 255]]]


def test_numbers_as_text() -> None:
    assert text.percent(0.98349) == "98.3\u00a0%"
    assert text.percent(1.0) == "100.0\u00a0%"
    assert text.percent(None) == "–"
    assert [text.levels(v) for v in (8 / 255, float(np.float32(8 / 255)), 0.03, 0.0)] == [
        "8/255",
        "8/255",
        "7.65/255",
        "0/255",
    ]
    assert [text.score(v) for v in (0.876, -0.314, -0.001)] == ["0.88", "−0.31", "0.00"]
    assert [text.rate(v) for v in (0.5377, 27.64, 3571.2, None, float("inf"))] == ["0.54", "27.6", "3,571", "–", "–"]
    assert [text.count(1, "image"), text.count(2000, "image")] == ["1 image", "2,000 images"]


def test_figures_show_what_they_are_given() -> None:
    roc, log, two, one, ticks = plots()
    assert [entry.label for entry in roc.legend] == ["clean", EVIL]
    assert [entry.series for entry in roc.legend] == [None, 1]
    assert "20 %" in Parsed(roc.svg).words
    assert "0.1 %" in Parsed(log.svg).words
    assert {"before", "after", "cosine similarity"} <= set(Parsed(two.svg).words)
    assert [entry.label for entry in two.legend] == ["one person", "two people", "threshold"]
    assert "after" not in Parsed(one.svg).words
    assert [entry.label for entry in one.legend] == ["one person", "two people"]
    assert {"model evaluations", "images", "1", "7"} <= set(Parsed(ticks.svg).words)


def test_many_kinds_of_ticks_share_bars() -> None:
    plot = ticks_plot(np.arange(1000), title="ticks")
    assert plot.svg.count('id="patch_') < 60
    assert "model evaluations" in ticks_plot([5, 5], title="ticks").svg


def test_errors() -> None:
    with pytest.raises(ValueError, match="rows: expected 2 cells, got 3"):
        parts.Table(header=("a", "b"), rows=(("1", "2", "3"),))
    with pytest.raises(ValueError, match="curves: expected at least one"):
        roc_plot([], negatives=3)
    with pytest.raises(ValueError, match="ticks: expected at least one image"):
        ticks_plot([], title="x")
    with pytest.raises(ValueError, match="expected arrays of one length"):
        similarity_plot("x", [1, 2], [1], [True, False], threshold=0, span=(0, 1))
    with pytest.raises(ValueError, match="span: expected two growing numbers"):
        similarity_plot("x", [1], None, [True], threshold=0, span=(1, 1))
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) uint8"):
        data_uri(FACE.astype(np.float32))
    with pytest.raises(ValueError, match="original, changed: expected one shape"):
        amplified(FACE, FACE[:3], 1)


def test_without_the_extra_the_message_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastadv.report.page import _environment

    _environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'fastadv\[report\]'"):
        render_page(page())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fastadv\[report\]'"):
        ticks_plot([1], title="x")
    _environment.cache_clear()


def test_pyplot_and_its_settings_are_not_touched() -> None:
    import matplotlib

    before, there = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    plots()
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == there
