"""The built site (make docs) in a browser: quiet, nothing from elsewhere, fit for a phone and the dark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Watched, chromium, serious_faults, served

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "docs"
sys.path.append(str(ROOT / "docs"))
PAGES = (
    "index.html",
    "static-or-dynamic.html",
    "tutorials/certificate.html",
    "reference/errors.html",
    "reference/halting.html",
    "theory/certificate.html",
)

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="the site is not built: make docs"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site below a sub-path of a plain file server."""
    top = tmp_path_factory.mktemp("site")
    (top / "any").mkdir()
    (top / "any" / "where").symlink_to(SITE, target_is_directory=True)
    with served(top) as address:
        yield address


def test_every_internal_link_leads_somewhere() -> None:
    from making import links

    assert links.faults(SITE) == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_pages_are_quiet_and_fit_the_screen(
    browser: Any, origin: str, page: str, width: int, scheme: str
) -> None:
    watched = Watched(browser, viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        watched.page.goto(f"{origin}/any/where/{page}")
        assert watched.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert watched.complaints == [] and watched.outside(origin) == []
        ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(n) for n in ground[4:-1].split(",")[:3]) > 380) == (scheme == "light")
    finally:
        watched.context.close()


@pytest.mark.parametrize("page", PAGES[:4])
def test_axe_finds_no_serious_fault(browser: Any, origin: str, page: str) -> None:
    watched = Watched(browser, color_scheme="light")
    try:
        watched.page.goto(f"{origin}/any/where/{page}")
        assert serious_faults(watched.page) == []
    finally:
        watched.context.close()


def test_the_interactive_page_is_there_with_its_records(browser: Any, origin: str) -> None:
    watched = Watched(browser)
    try:
        watched.page.goto(f"{origin}/any/where/static-or-dynamic.html")
        watched.page.click(".call a")
        watched.page.wait_for_selector("#answer .word", timeout=30_000)  # it reads its records first
        assert watched.page.locator("#entry option").count() >= 10
        assert watched.page.inner_text("#answer .word") and watched.page.inner_text("#sources code")
        assert watched.complaints == [] and watched.outside(origin) == []
    finally:
        watched.context.close()


def test_the_search_finds_a_page_without_a_server_of_its_own(browser: Any, origin: str) -> None:
    watched = Watched(browser)
    try:
        watched.page.goto(f"{origin}/any/where/search.html?q=certificate")
        watched.page.wait_for_selector("ul.search li a", timeout=30_000)
        assert watched.outside(origin) == []
    finally:
        watched.context.close()
