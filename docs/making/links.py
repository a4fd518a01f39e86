"""Checks the built site: internal links lead to a page and a place on it; nothing comes from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Tags that make a browser fetch what they name.
FETCHED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src", "video": "src"}


@dataclass
class Found(HTMLParser):
    """What a page has: places, links, and what it fetches."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        values = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag in FETCHED and values.get(FETCHED[tag]):
            self.fetched.append(str(values[FETCHED[tag]]))


def read(site: Path) -> dict[Path, Found]:
    """Every page of the site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Found()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def faults(site: Path) -> list[str]:
    """What is wrong, a line for each."""
    pages, wrong = read(site), []
    for path, page in pages.items():
        here = path.relative_to(site)
        for target in page.fetched:
            if urlsplit(target).scheme not in ("", "data") or target.startswith("//"):
                wrong.append(f"{here} fetches {target} from elsewhere")
        for target in page.links + page.fetched:
            wrong += [f"{here}: {target} {why}" for why in _broken(target, path, site, pages)]
    return wrong


def _broken(target: str, path: Path, site: Path, pages: dict[Path, Found]) -> list[str]:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return []
    if parts.path.startswith("/"):
        return ["is absolute: it would break under a sub-path"]
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not there.is_relative_to(site.resolve()):
        return ["leads out of the site"]
    if not there.is_file():
        return ["is not there"]
    if parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
        return ["has no such place"]
    return []
