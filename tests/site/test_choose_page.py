"""The page "Static or dynamic?" in a browser: its answers are the records', and nothing leaves it."""

import copy
import json
import sys

import numpy as np
import pytest
from browsing import Watched, serious_faults
from choosing_page import CIFAR, DIGITS, ROOT, answer, choose, record

from odn_hybrid.deploy.comparing.advice import recommend

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


# --- the answers are the records' ---------------------------------------------------------------------


def test_the_answer_changes_with_the_tolerance_as_the_record_says(opened):
    page, held = opened(), record(CIFAR)
    choose(page, CIFAR)
    whole = held["report"]["exits"][-1]["macs_static"]
    seen = set()
    for told in held["tolerances"]:
        page.fill("#points", str(told["points"]))
        choice, text = answer(page)
        exit, dynamic = told["static"]["exit"], told["dynamic"]
        cheap = {"full": whole}
        if exit < 8:
            cheap["static"] = held["report"]["exits"][exit - 1]["macs_static"]
        if dynamic["certified"]:
            cheap["dynamic"] = dynamic["mean_macs"]
            assert f"{100 * dynamic['mean_macs'] / whole:.0f} %" in text
        assert choice == min(cheap, key=cheap.get), told["points"]
        assert told["static"]["reason"] in text
        seen.add((choice, exit))
    assert {choice for choice, _ in seen} == {"full", "dynamic"} and len(seen) >= 3
    page.fill("#points", "0")
    assert answer(page)[0] == "full"


def test_measured_times_decide_where_the_record_has_them(opened):
    page, held = opened(), record(DIGITS)["report"]
    choose(page, DIGITS)
    static = held["comparison"]["rows"][1]
    for batch in ("1", "16", "64"):
        page.select_option("#batch", batch)
        page.fill("#points", "2")
        choice, text = answer(page)
        assert choice == "static" and "exit 4" in text and "not promised" in text
        assert f"{static['speedup'][batch]['median']:.2f} x" in text
        assert f"{static['ms_per_image'][batch]['median']:.3g}"[:5] in page.inner_text("#models")
    page.fill("#points", "1")
    assert answer(page)[0] == "full"


def test_every_entry_shows_and_says_where_it_comes_from(opened):
    page = opened()
    entries = page.evaluate("odnRecords.entries.map((one) => [one.id, one.sources])")
    assert len(entries) >= 10
    for name, sources in entries:
        choose(page, name)
        assert page.inner_text("#answer") and page.inner_text("#models table")
        shown = page.inner_text("#sources")
        for source in sources:
            told = json.loads((ROOT / source["file"]).read_text(encoding="utf-8"))
            assert source["command"] == told["command"] and source["commit"] == told["commit"]
            assert told["command"] in shown and told["commit"][:12] in shown
            assert f"Tests the claim\n{told['claim']}" in shown


def timed_report(static, dynamic, certified):
    """A report with measured rounds, as `odn compare` leaves it; speeds as ratios to the full network."""
    held = {"schema": 1, **copy.deepcopy(record(CIFAR)["report"])}
    random = np.random.default_rng(5)
    rows = []
    for name, exit, ratio in (("full", 8, 1.0), ("static", 7, static), ("dynamic", None, dynamic)):
        noise = 1 + 0.01 * random.standard_normal((2, 15))
        rounds = {size: list(10 / ratio * noise[at]) for at, size in enumerate(("1", "64"))}
        one = {"name": name, "kind": name, "exit": exit, "rounds_ms": rounds, "note": None}
        one["accuracy"] = held["exits"][7]["accuracy"]["test"]
        one["certified"] = certified if name == "dynamic" else None
        spread = {size: {"median": 10 / ratio, "low": 9 / ratio, "high": 11 / ratio} for size in rounds}
        gain = {size: {"median": ratio, "low": 0.985 * ratio, "high": 1.015 * ratio} for size in rounds}
        rows.append({**one, "ms_per_image": spread, "speedup": gain})
    advice = recommend(rows, held, [1, 64])
    held["comparison"] = {
        "device": "a device",
        "batch_sizes": [1, 64],
        "rows": rows,
        "recommendation": advice,
    }
    return held


SPEEDS = [
    (1.2, 1.5, True),
    (1.2, 1.5, False),
    (1.5, 1.2, True),
    (1.02, 1.03, True),
    (1.02, 1.4, True),
    (1.3, 1.3, True),
]


@pytest.mark.parametrize("speeds", SPEEDS, ids=str)
def test_the_page_chooses_as_the_library_does(opened, speeds):
    report = timed_report(*speeds)
    found = opened().evaluate(
        """(text) => {
            const entry = odn.readReport(text);
            return ["1", "64"].map((batch) => odn.recommend(entry, {points: 1, device: 0, batch}).choice);
        }""",
        json.dumps(report),
    )
    by_batch = report["comparison"]["recommendation"]["by_batch"]
    assert found == [by_batch[size]["choice"] for size in ("1", "64")]


# --- a reader's own report -----------------------------------------------------------------------------


def drop(page, text, name="report.json"):
    page.evaluate(
        """([text, name]) => {
            const held = new DataTransfer();
            held.items.add(new File([text], name, {type: "application/json"}));
            const how = {dataTransfer: held, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", how));
        }""",
        [text, name],
    )


def own_report():
    return json.loads((ROOT / "benchmarks" / "assets" / "cifar10_small" / "report.json").read_text())


def test_a_report_that_is_dropped_is_shown_in_the_same_views(opened):
    page = opened()
    drop(page, json.dumps(own_report()), "mine.json")
    page.wait_for_selector("#told .good")
    assert "mine.json" in page.inner_text("#told") and "mine.json" in page.inner_text("#sources")
    assert "Tests the claim" not in page.inner_text("#sources")  # a record does, a report does not
    choice, text = answer(page)
    assert choice == "dynamic" and "67 %" in text  # certified at one point
    page.fill("#points", "0.5")
    assert answer(page)[0] == "static"  # by the fit's own test, 0.18 points
    assert "allows 1 point, more than you do" in page.inner_text("#answer")
    assert page.locator("#curve svg").count() == 1 and page.locator("#halting svg").count() == 1
    assert "odn report --html" in page.inner_text("#pictures")


def test_a_report_can_be_chosen_with_the_file_button(opened, tmp_path):
    page = opened()
    path = tmp_path / "report.json"
    path.write_text(json.dumps(timed_report(1.2, 1.5, True)))
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#told .good")
    assert "Timed on a device" in page.inner_text("#device")
    assert answer(page)[0] == "dynamic"


def broken(**changes):
    report = own_report()
    for where, value in changes.items():
        *way, last = where.split("__")
        place = report
        for key in way:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value
    return json.dumps(report)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "no schema number"),
        ('"text"', "no schema number"),
        (broken(schema=7), "schema 7"),
        (broken(exits=[]), "exits is []"),
        (broken(exits__3__macs_static="many"), "exits[3].macs_static"),
        (broken(exits__2__accuracy__test={"value": 3}), "exits[2].accuracy.test.value is 3"),
        (broken(reference=None), "reference is null"),
        (broken(reference__exit=99), "one of the exits"),
        (broken(dynamic__halting="all"), "dynamic.halting"),
        (broken(comparison={"device": "x", "batch_sizes": [1], "rows": [{}]}), "comparison.rows[0].name"),
    ],
)
def test_a_malformed_report_gets_a_sentence_and_the_page_stays(opened, text, said):
    page = opened()
    before = answer(page)
    drop(page, text)
    page.wait_for_selector("#told .bad")
    assert said in page.inner_text("#told") and answer(page) == before


def test_names_from_outside_are_text(opened):
    page, report = opened(), own_report()
    report["model"] = report["data"]["name"] = report["static"]["reason"] = HOSTILE
    report["dynamic"]["certificate"]["statement"] = HOSTILE
    drop(page, json.dumps(report), HOSTILE)
    page.wait_for_selector("#told .good")
    assert HOSTILE in page.inner_text("#answer") and HOSTILE in page.inner_text("#told")
    assert page.locator("main img, main script").count() == 0


# --- for everybody -------------------------------------------------------------------------------------


def test_it_works_with_the_keyboard_alone(opened):
    page = opened()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the skip link
    assert page.evaluate("document.activeElement.id") == "verdict"
    page.focus("#entry")
    first = page.inner_text("#answer")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#answer") != first
    page.keyboard.press("ArrowUp")
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.input_value("#points") == "0" and answer(page)[0] == "full"
    page.focus("#curve summary")
    page.keyboard.press("Enter")
    assert page.locator("#curve details[open] table").is_visible()
    reached = set()
    page.focus("#entry")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"slider", "points", "file"} <= reached


def test_a_tolerance_that_is_none_is_marked_and_changes_nothing(opened):
    page = opened()
    before = page.inner_text("#answer")
    page.fill("#points", "-3")
    assert page.get_attribute("#points", "aria-invalid") == "true"
    assert page.inner_text("#answer") == before


def test_dark_mode_and_the_sites_own_switch(opened):
    shade = "getComputedStyle(document.body).backgroundColor"
    assert opened(color_scheme="light").evaluate(shade) != opened(color_scheme="dark").evaluate(shade)
    page = opened(color_scheme="light")
    light = page.evaluate(shade)
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.reload()
    assert page.evaluate(shade) != light


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_hangs_over_the_edge(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    for name in (CIFAR, DIGITS):
        choose(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened, scheme):
    page = opened(color_scheme=scheme, viewport={"width": 900, "height": 900})
    for name in (CIFAR, DIGITS):
        choose(page, name)
        for details in page.query_selector_all("details:not([open]) summary"):
            details.click()
        assert serious_faults(page) == []


def test_without_records_it_says_how_to_build_them(browser, folder, tmp_path):
    for path in (folder / "any" / "where" / "choose").iterdir():
        if path.name != "records.js":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    watched = Watched(browser)
    page = watched.page
    page.goto((tmp_path / "index.html").as_uri())
    said = "No records here: make docs QUICK=1 builds this page into build/docs/choose."
    assert page.inner_text("#answer") == said
    assert page.is_visible("#own") and page.is_hidden("#controls") and page.is_hidden("#models")
    page.set_viewport_size({"width": 500, "height": 800})
    drop(page, json.dumps(own_report()))
    page.wait_for_selector("#told .good")
    assert answer(page)[0] == "dynamic" and page.is_visible("#models")
    assert len(watched.complaints) == 1 and "ERR_FILE_NOT_FOUND" in watched.complaints[0]
    watched.context.close()


def test_it_opens_from_disk(browser, folder):
    watched = Watched(browser)
    path = folder / "any" / "where" / "choose" / "index.html"
    watched.page.goto(path.as_uri())
    assert answer(watched.page)[0] == "static"
    assert watched.complaints == [] and watched.outside("file://") == []
    watched.context.close()


def test_pictures_of_early_and_late_inputs(maker, monkeypatch):
    stops = {"early": [{"row": 0, "image": 3}], "late": [{"row": 1, "image": 5}]}
    found = maker.pictures(stops, {"name": "digits"})
    assert found["early"][0].startswith("data:image/png;base64,") and len(found["late"]) == 1
    assert "not part of this repository" in maker.pictures(stops, {"name": "cifar10.npz"})["missing"]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "scikit-learn" in maker.pictures(stops, {"name": "digits"})["missing"]
