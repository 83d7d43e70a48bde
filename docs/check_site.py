"""Check a built site: it loads nothing from another host, and every link inside it leads somewhere.

``python docs/check_site.py build/docs`` prints what is wrong, one line each, and ends with 1 if anything is.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# attributes that a browser fetches by itself; an <a href> is fetched only when it is followed
LOADS = {"src", "srcset", "poster", "data", "action", "background"}
CSS_URL = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


class Page(HTMLParser):
    """What one HTML file loads, links to, and can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one element."""
        for name, value in attrs:
            if not value:
                continue
            if name in LOADS or (name == "href" and tag in ("link", "image", "use")):
                self.loads.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name == "style":
                self.loads += CSS_URL.findall(value)

    handle_startendtag = handle_starttag


def read(path: Path) -> Page:
    """The page in a file; of a style sheet only what it loads."""
    page = Page()
    text = path.read_text(encoding="utf-8")
    page.loads += CSS_URL.findall(text)
    if path.suffix in (".html", ".svg"):
        page.feed(text)
    return page


def problems(site: Path) -> list[str]:
    """A line for each address that is on another host and is loaded, and for each link that leads nowhere."""
    pages = {p.resolve(): read(p) for p in sorted(site.rglob("*")) if p.suffix in (".html", ".css", ".svg")}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve()).as_posix()
        for address in page.loads:
            if re.match(r"(?:[a-z]+:)?//", address):
                found.append(f"{where}: loads {address}")
        for link in [*page.links, *(a for a in page.loads if path.suffix == ".html")]:
            if why := _broken(link, path, pages):
                found.append(f"{where}: {why} {link}")
    return found


def _broken(link: str, path: Path, pages: dict[Path, Page]) -> str:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return "no such file:"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor:"
    return ""


def main() -> int:
    """Print the problems of the site that the command line names."""
    site = Path(sys.argv[1])
    found = problems(site)
    print("\n".join(found) or f"{site}: {len(list(site.rglob('*.html')))} pages, nothing loaded from another host")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
