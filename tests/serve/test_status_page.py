"""The status page in a real browser, against a real server."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn
from watched import CERTIFICATE, logits_of, model, serving_watched

from odn_hybrid.serve.app import create_app
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.decoding import Decoders
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.refusals import Overloaded
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.simulated import numbered_images
from odn_hybrid.serve.watching import Watch, watch_routes

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the program chromium is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

SOON = 60.0  # seconds after which something is broken
TOKEN = "sixteen letters, or so"
HOSTILE = "<img src=x onerror=\"document.title='broken into'\">"
QUIETLY = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def listening(**settings: Any) -> Iterator[tuple[str, Watch, Host]]:
    """A server on a free port, its watch and its host."""
    chosen = ServeSettings(port=0, **settings)
    with serving_watched(chosen) as (watch, host), closing(socket.create_server(("127.0.0.1", 0))) as door:
        app = create_app(host, chosen, Decoders(chosen), pages=[watch_routes(watch, host)])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}", watch, host
        finally:
            server.should_exit = True
            thread.join(SOON)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
        yield found
        found.close()


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[str, Watch, Host]]:
    with listening() as (url, watch, host):
        reference = logits_of(500, seed=1)
        host.put("net", model(logits_of(200), reference=reference))
        host.put(
            "other",
            model(logits_of(200), void=HOSTILE, certificate={**CERTIFICATE, "statement": HOSTILE}),
        )
        yield url, watch, host


class Page:
    """A tab, and what it complained of and asked for."""

    def __init__(self, browser: Any, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.context.set_default_timeout(1e3 * SOON)
        self.tab = self.context.new_page()
        self.tab.clock.install()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))

    def card(self, name: str) -> Any:
        return self.tab.get_by_role("region", name=name, exact=True)


@contextmanager
def opened(browser: Any, url: str, **how: Any) -> Iterator[Page]:
    page = Page(browser, **how)
    try:
        page.tab.goto(url)
        yield page
    finally:
        page.context.close()


def ask(host: Host, count: int, options: Options | None = None) -> None:
    numbers = np.random.default_rng(count).integers(0, 200, count).tolist()
    host.submit("net", numbered_images(numbers), options or Options()).result(SOON)


def images(page: Page) -> list[int]:
    cells = page.card("net").locator("tbody tr td:nth-child(4)").all_inner_texts()
    return [int(text.replace(",", "")) for text in cells]


def test_it_shows_numbers_that_change_and_asks_nobody_else(browser: Any, live: Any) -> None:
    url, watch, host = live
    ask(host, 40)
    with opened(browser, url) as page:
        expect(page.tab.locator("#state")).to_have_text("Live", timeout=1e3 * SOON)
        before = images(page)
        assert sum(before) >= 40 and before[0] > 0
        ask(host, 60)
        watch.refused("net", Overloaded)
        expect(page.card("net")).to_contain_text("overloaded: 1", timeout=1e3 * SOON)
        after = images(page)
        assert sum(after) >= sum(before) + 60
        card = page.card("net").inner_text()
        assert CERTIFICATE["statement"][1:] in card and "No drift seen" in card
        assert re.search(r"\d ?ms\s+Median latency", card) or re.search(r"Median latency\s+[\d.]+ ?ms", card)
        assert page.complaints == []
        assert page.asked and all(asked.startswith(f"{url}/") for asked in page.asked)


def test_bars_are_as_long_as_their_shares(browser: Any, live: Any) -> None:
    url, _, host = live
    ask(host, 50)
    with opened(browser, url, reduced_motion="reduce") as page:
        expect(page.tab.locator("#state")).to_have_text("Live", timeout=1e3 * SOON)
        page.tab.get_by_role("button", name="Pause").click()
        expect(page.tab.locator("#state")).to_have_text("Paused")
        counts = images(page)
        widths = page.card("net").evaluate(
            "card => [...card.querySelectorAll('.bar')].map(b => b.getBoundingClientRect().width"
            " / b.parentElement.getBoundingClientRect().width)"
        )
        assert widths == pytest.approx([count / sum(counts) for count in counts], abs=0.01)


def test_text_of_models_is_text(browser: Any, live: Any) -> None:
    with opened(browser, live[0]) as page:
        expect(page.card("other")).to_contain_text(HOSTILE, timeout=1e3 * SOON)
        assert page.tab.title() == "odn serve" and page.tab.locator("img").count() == 0
        assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_by_day_and_by_night(browser: Any, live: Any, scheme: str) -> None:
    with opened(browser, live[0], viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        expect(page.tab.locator("#state")).to_have_text("Live", timeout=1e3 * SOON)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
        shades = page.tab.evaluate(
            "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
        )
        ground, ink = (sum(map(int, re.findall(r"\d+", shade)[:3])) / 3 for shade in shades)
        assert (ground > 200 > 80 > ink) if scheme == "light" else (ground < 60 < 180 < ink)


def test_it_says_when_the_server_is_gone_and_when_it_is_back(browser: Any, live: Any) -> None:
    with opened(browser, live[0]) as page:
        state, notice = page.tab.locator("#state"), page.tab.get_by_role("alert")
        expect(state).to_have_text("Live", timeout=1e3 * SOON)
        assert notice.count() == 0
        page.tab.route("**/status", lambda route: route.abort())
        expect(state).to_have_text("Unreachable", timeout=1e3 * SOON)
        expect(notice).to_contain_text("has not answered since")
        page.tab.unroute("**/status")
        expect(state).to_have_text("Live", timeout=1e3 * SOON)
        assert notice.count() == 0


def test_it_rests_while_nobody_looks(browser: Any, live: Any) -> None:
    with opened(browser, live[0]) as page:
        expect(page.tab.locator("#state")).to_have_text("Live", timeout=1e3 * SOON)
        page.tab.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.tab.wait_for_load_state("networkidle")
        count = len(page.asked)
        page.tab.clock.run_for(10_000)
        assert len(page.asked) == count
        with page.tab.expect_request("**/status"):
            page.tab.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        with page.tab.expect_request("**/status"):
            page.tab.clock.run_for(2000)


def test_it_is_used_by_keyboard_and_read_aloud(browser: Any, live: Any) -> None:
    with opened(browser, live[0]) as page:
        expect(page.tab.locator("#state")).to_have_text("Live", timeout=1e3 * SOON)
        page.tab.keyboard.press("Tab")
        pause = page.tab.get_by_role("button", name="Pause")
        expect(pause).to_be_focused()
        page.tab.keyboard.press("Enter")
        expect(page.tab.get_by_role("button", name="Pause", pressed=True)).to_be_visible()
        table = page.card("net").get_by_role("table", name=re.compile("exit where they stopped"))
        assert table.get_by_role("columnheader").all_inner_texts() == [
            "Exit", "Units", "Stopped here", "Images", "Waiting",
        ]  # fmt: skip
        assert table.get_by_role("rowheader").all_inner_texts() == ["1", "2", "4"]
        expect(page.tab.get_by_role("heading", level=2)).to_have_count(2)
        expect(page.tab.get_by_role("status")).to_have_text("Paused")


def test_an_answer_on_its_way_does_not_end_a_pause(browser: Any, live: Any) -> None:
    with opened(browser, live[0]) as page:
        state = page.tab.locator("#state")
        expect(state).to_have_text("Live", timeout=1e3 * SOON)
        held: list[Any] = []
        page.tab.route("**/status", lambda route: held.append(route))
        with page.tab.expect_request("**/status"):
            pass
        page.tab.get_by_role("button", name="Pause").click()
        expect(state).to_have_text("Paused")
        said = {"version": "9.9.9", "ready": True, "uptime_s": 5000.0, "rss_bytes": None, "models": []}
        held[0].fulfill(json=said)
        expect(page.tab.locator("#server")).to_have_text("version 9.9.9 · up 1 h 23 min")
        expect(state).to_have_text("Paused")


def test_with_a_token_it_asks_for_it(browser: Any) -> None:
    with listening(token=TOKEN) as (url, _, host):
        host.put("net", model(logits_of(50)))
        with opened(browser, url) as page:
            field = page.tab.get_by_label(re.compile("wants its token"))
            expect(field).to_be_focused(timeout=1e3 * SOON)
            field.fill("something else, also long")
            page.tab.keyboard.press("Enter")
            field = page.tab.get_by_label(re.compile("not the server's token"))
            expect(field).to_be_focused(timeout=1e3 * SOON)
            assert page.tab.locator(".model").count() == 0
            field.fill(TOKEN)
            page.tab.keyboard.press("Enter")
            expect(page.card("net")).to_be_visible(timeout=1e3 * SOON)
            expect(page.tab.locator("#state")).to_have_text("Live")
            assert page.tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            assert not any("sixteen" in asked for asked in page.asked)
            page.tab.reload()
            expect(page.card("net")).to_be_visible(timeout=1e3 * SOON)
